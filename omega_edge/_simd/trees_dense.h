/* Small trees by asking every node of every candidate, in vectors: a walk asks few nodes and waits for each. The file that
 * includes it names TREES(name), what its function is called.
 *
 * From the last node to the first, a node answers for all candidates what lies to its left or to its right; children come
 * after their parents, so their answers are there. The loops have no branch, and the compiler makes vectors of them.
 */
#include "trees.h"

#define MOST_NODES 31 /* of a tree that is asked whole; larger ones are walked */
#define AT_ONCE 128   /* candidates: with MOST_NODES their answers are 16 kB, which the nearest cache holds */

typedef struct {
    float of[MOST_NODES][AT_ONCE];
} answers;

/* Where the nodes of a tree end if they all lie between its root and the next, and are few enough; else its root. */
static size_t end_of(const omega_forest *forest, size_t tree)
{
    const size_t root = forest->roots[tree], end = tree + 1 < forest->trees ? forest->roots[tree + 1] : forest->nodes;
    if (end <= root || end - root > MOST_NODES)
        return root;
    for (size_t at = 2 * root; at < 2 * end; at++)
        if (forest->children[at] >= 0 && (size_t)forest->children[at] >= end)
            return root;
    return end;
}

/* Two leaves; a leaf and a node; a node and a leaf; two nodes. */
static void answer_leaves(const float *restrict asked, float threshold, float left, float right, size_t count,
                          float *restrict out)
{
    for (size_t i = 0; i < count; i++)
        out[i] = asked[i] <= threshold ? left : right;
}

static void answer_left_leaf(const float *restrict asked, float threshold, float left, const float *restrict right,
                             size_t count, float *restrict out)
{
    for (size_t i = 0; i < count; i++) {
        const float other = right[i];
        out[i] = asked[i] <= threshold ? left : other;
    }
}

static void answer_right_leaf(const float *restrict asked, float threshold, const float *restrict left, float right,
                              size_t count, float *restrict out)
{
    for (size_t i = 0; i < count; i++) {
        const float other = left[i];
        out[i] = asked[i] <= threshold ? other : right;
    }
}

static void answer_nodes(const float *restrict asked, float threshold, const float *restrict left,
                         const float *restrict right, size_t count, float *restrict out)
{
    for (size_t i = 0; i < count; i++) {
        const float first = left[i], second = right[i];
        out[i] = asked[i] <= threshold ? first : second;
    }
}

/* values: of the first of `count` candidates. */
static void answer(const omega_forest *forest, size_t root, size_t end, const float *values, size_t m, size_t count,
                   answers *found)
{
    for (size_t node = end; node-- > root;) {
        const float *asked = values + forest->feature[node] * m;
        const float threshold = forest->threshold[node];
        const int32_t left = forest->children[2 * node], right = forest->children[2 * node + 1];
        float *out = found->of[node - root];
        if (left < 0 && right < 0)
            answer_leaves(asked, threshold, forest->leaves[~left], forest->leaves[~right], count, out);
        else if (left < 0)
            answer_left_leaf(asked, threshold, forest->leaves[~left], found->of[(size_t)right - root], count, out);
        else if (right < 0)
            answer_right_leaf(asked, threshold, found->of[(size_t)left - root], forest->leaves[~right], count, out);
        else
            answer_nodes(asked, threshold, found->of[(size_t)left - root], found->of[(size_t)right - root], count, out);
    }
}

omega_fault TREES(sum_trees)(const omega_forest *forest, const float *values, size_t m, float *out)
{
    answers found;
    const omega_fault fault = omega_check_forest(forest);
    if (fault.kind != OMEGA_FINE)
        return fault;
    for (size_t candidate = 0; candidate < m; candidate++)
        out[candidate] = 0.0f;
    for (size_t tree = 0; tree < forest->trees; tree++) {
        const size_t root = forest->roots[tree], end = end_of(forest, tree);
        if (end == root) {
            omega_add_tree(forest, (int32_t)root, values, m, out);
            continue;
        }
        for (size_t first = 0; first < m; first += AT_ONCE) {
            const size_t count = m - first < AT_ONCE ? m - first : AT_ONCE;
            answer(forest, root, end, values + first, m, count, &found);
            for (size_t i = 0; i < count; i++)
                out[first + i] += found.of[0][i];
        }
    }
    return fault;
}
