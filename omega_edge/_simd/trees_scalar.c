/* The second stage in plain C: the oracle of every other file, and what walks trees too large for those. */
#include "trees.h"

#define TOGETHER 8 /* candidates that walk down a tree side by side: a walk waits for its loads, eight wait at once */

void omega_scalar_count_greater(const float *values, size_t lists, size_t m, const float *of_count, float *out)
{
    omega_count_greater(values, lists, m, of_count, out);
}

/* Whether a child of a node is a node after it or a leaf. */
static int is_child(const omega_forest *forest, size_t node, int32_t child)
{
    return child >= 0 ? (size_t)child > node && (size_t)child < forest->nodes : (size_t)~child < forest->leaf_count;
}

omega_fault omega_check_forest(const omega_forest *forest)
{
    for (size_t tree = 0; tree < forest->trees; tree++)
        if (forest->roots[tree] >= forest->nodes)
            return (omega_fault){OMEGA_ROOT_OUTSIDE, tree};
    for (size_t node = 0; node < forest->nodes; node++)
        if (forest->feature[node] >= forest->inputs || !is_child(forest, node, forest->children[2 * node]) ||
            !is_child(forest, node, forest->children[2 * node + 1]))
            return (omega_fault){OMEGA_NODE_DAMAGED, node};
    return (omega_fault){OMEGA_FINE, 0};
}

static inline int32_t child_of(const omega_forest *forest, int32_t node, const float *values, size_t m, size_t at)
{
    const float value = values[forest->feature[node] * m + at];
    return forest->children[2 * (size_t)node + !(value <= forest->threshold[node])];
}

/* Adds the leaves that a tree leads eight neighbouring candidates to. Who has arrived stands still, by selection. */
static inline void add_together(const omega_forest *forest, int32_t root, const float *values, size_t m, size_t first,
                                float *out)
{
    int32_t at[TOGETHER], arrived;
    /* All ask the root the same. */
    const float *asked = values + forest->feature[root] * m + first, threshold = forest->threshold[root];
    const int32_t left = forest->children[2 * (size_t)root], right = forest->children[2 * (size_t)root + 1];
    for (size_t lane = 0; lane < TOGETHER; lane++)
        at[lane] = asked[lane] <= threshold ? left : right;
    for (;;) {
        arrived = -1;
        for (size_t lane = 0; lane < TOGETHER; lane++)
            arrived &= at[lane];
        if (arrived < 0)
            break;
        for (size_t lane = 0; lane < TOGETHER; lane++) {
            const int32_t next = child_of(forest, at[lane] < 0 ? root : at[lane], values, m, first + lane);
            at[lane] = at[lane] < 0 ? at[lane] : next;
        }
    }
    for (size_t lane = 0; lane < TOGETHER; lane++)
        out[first + lane] += forest->leaves[~at[lane]];
}

void omega_add_tree(const omega_forest *forest, int32_t root, const float *values, size_t m, float *out)
{
    size_t candidate = 0;
    for (; candidate + TOGETHER <= m; candidate += TOGETHER)
        add_together(forest, root, values, m, candidate, out);
    for (; candidate < m; candidate++) {
        int32_t at = root;
        do
            at = child_of(forest, at, values, m, candidate);
        while (at >= 0);
        out[candidate] += forest->leaves[~at];
    }
}

omega_fault omega_scalar_sum_trees(const omega_forest *forest, const float *values, size_t m, float *out)
{
    const omega_fault fault = omega_check_forest(forest);
    if (fault.kind != OMEGA_FINE)
        return fault;
    for (size_t candidate = 0; candidate < m; candidate++)
        out[candidate] = 0.0f;
    for (size_t tree = 0; tree < forest->trees; tree++)
        omega_add_tree(forest, (int32_t)forest->roots[tree], values, m, out);
    return fault;
}
