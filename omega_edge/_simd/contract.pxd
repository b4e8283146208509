"""kernels.h, as Cython sees it."""

from libc.stdint cimport int8_t, int32_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "kernels.h" nogil:
    const int OMEGA_DIMENSION_STEP
    enum:
        OMEGA_MAX_DIMENSIONS  # of a constant an array could not be made
    const int OMEGA_MAX_GENRES
    enum:
        OMEGA_MAX_FEATURES
    const int OMEGA_SIGN_ROWS
    const int OMEGA_SEQUENCE_DIMENSIONS
    const int OMEGA_SEQUENCE_HEADS
    const int OMEGA_SEQUENCE_WINDOW
    const int OMEGA_SEQUENCE_FEED
    const int OMEGA_SEQUENCE_EVENT
    size_t OMEGA_TOP_K_WORDS(size_t k)
    size_t OMEGA_TWO_STAGE_WORDS(size_t c, size_t k)
    size_t OMEGA_BATCH_WORDS(size_t k)

    ctypedef struct omega_rows:
        const uint32_t *offsets
        const uint32_t *columns
        const int8_t *values
        const float *scale
        size_t rows
        size_t entries

    ctypedef struct omega_codes:
        const int8_t *codes
        const float *scale
        size_t rows
        size_t dimensions

    ctypedef struct omega_halves:
        const uint8_t *high
        const uint8_t *low
        const float *scale
        const uint8_t *spread
        size_t rows
        size_t dimensions

    ctypedef struct omega_signs:
        const uint8_t *blocks
        size_t rows
        size_t dimensions

    ctypedef struct omega_forest:
        const uint32_t *roots
        const uint8_t *feature
        const float *threshold
        const int32_t *children
        const float *leaves
        size_t trees
        size_t nodes
        size_t leaf_count
        size_t inputs

    ctypedef struct omega_rank_columns:
        const float *success
        const uint32_t *time
        const float *trend

    ctypedef struct omega_rank_weights:
        float similarity
        float success
        float recency
        float trend

    ctypedef struct omega_rank_limits:
        uint32_t now
        float per_half_life
        float least_similarity

    ctypedef struct omega_sequence:
        omega_codes titles
        const float *success
        const float *distance
        const float *norms
        const int8_t *attention
        const float *attention_scale
        const int8_t *feed_in
        const float *feed_in_scale
        const float *feed_in_bias
        const int8_t *feed_out
        const float *feed_out_scale
        const float *feed_out_bias
        float input_scale

    ctypedef struct omega_sequence_workspace:
        pass

    ctypedef enum omega_fault_kind:
        OMEGA_FINE
        OMEGA_ROW_OUTSIDE
        OMEGA_OFFSETS_DAMAGED
        OMEGA_COLUMN_OUTSIDE
        OMEGA_GENRE_OUTSIDE
        OMEGA_ROOT_OUTSIDE
        OMEGA_NODE_DAMAGED

    ctypedef struct omega_fault:
        omega_fault_kind kind
        size_t at

    ctypedef struct omega_kernels:
        const char *isa
        size_t (*quantise)(const float *, size_t, size_t, int8_t *, float *) noexcept nogil
        size_t (*search)(const omega_codes *, const int8_t *, float, const uint8_t *, size_t, uint64_t *, uint32_t *,
                         float *) noexcept nogil
        void (*cosines)(const omega_codes *, const int8_t *, const float *, size_t, float *) noexcept nogil
        omega_fault (*row_scatter_add)(const omega_rows *, const uint32_t *, const float *, size_t, float *,
                                       size_t) noexcept nogil
        omega_fault (*row_lookup)(const omega_rows *, const uint32_t *, size_t, const uint32_t *, size_t,
                                  float *) noexcept nogil
        omega_fault (*genre_means)(const uint64_t *, size_t, const float *, size_t, float *) noexcept nogil
        void (*left_out_sums)(const omega_codes *, const float *, float, size_t, float *) noexcept nogil
        void (*fuse)(const float *const *, size_t, size_t, const float *, float *) noexcept nogil
        size_t (*fuse_top_k)(const float *const *, size_t, size_t, const float *, const uint8_t *, size_t, uint64_t *,
                             uint32_t *, float *) noexcept nogil
        omega_fault (*diversify)(const omega_codes *, const uint32_t *, const float *, size_t, float, size_t, float *,
                                 uint32_t *, size_t *) noexcept nogil
        void (*count_greater)(const float *, size_t, size_t, const float *, float *) noexcept nogil
        omega_fault (*sum_trees)(const omega_forest *, const float *, size_t, float *) noexcept nogil
        void (*halve)(const int8_t *, size_t, size_t, uint8_t *, uint8_t *, uint8_t *) noexcept nogil
        void (*join)(const omega_halves *, const uint32_t *, size_t, int8_t *) noexcept nogil
        size_t (*search_halves)(const omega_halves *, const int8_t *, float, const uint8_t *, size_t, uint64_t *,
                                uint32_t *, float *) noexcept nogil
        void (*search_batch)(const omega_halves *, const int8_t *, const float *, size_t, const uint8_t *, size_t,
                             uint64_t *, size_t *, uint32_t *, float *) noexcept nogil
        void (*put_signs)(const int8_t *, size_t, size_t, size_t, uint8_t *) noexcept nogil
        size_t (*search_two_stage)(const omega_signs *, const omega_halves *, const int8_t *, float, const uint8_t *,
                                   size_t, size_t, uint64_t *, uint32_t *, float *) noexcept nogil
        size_t (*rescore)(const uint16_t *, size_t, const float *, float, const uint32_t *, size_t, size_t,
                          uint64_t *, uint32_t *, float *) noexcept nogil
        size_t (*rank)(const omega_halves *, const int8_t *, float, const omega_rank_columns *,
                       const omega_rank_weights *, const omega_rank_limits *, const uint8_t *, size_t, uint64_t *,
                       uint32_t *, float *) noexcept nogil
        omega_fault (*sequence_events)(const omega_sequence *, const uint32_t *, const uint8_t *, size_t,
                                       float *) noexcept nogil
        void (*sequence_states)(const omega_sequence *, const float *, size_t, size_t, omega_sequence_workspace *,
                                float *) noexcept nogil

    const omega_kernels *omega_kernels_at(size_t index)
