/* The sequence encoder in plain C: the oracle of every other file, and what they share. */
#include <float.h>
#include <math.h>
#include <string.h>

#define LANES 1
#define VECTORS 4
#define SEQUENCE(name) omega_scalar_##name
#include "sequence_dense.h"

#define DIMENSIONS OMEGA_SEQUENCE_DIMENSIONS
#define HEADS OMEGA_SEQUENCE_HEADS
#define WINDOW OMEGA_SEQUENCE_WINDOW
#define FEED OMEGA_SEQUENCE_FEED
#define EVENT OMEGA_SEQUENCE_EVENT
#define MATRIX (DIMENSIONS * DIMENSIONS)
#define EVENTS_AT_ONCE 16

enum { QUERY, KEY, VALUE, MIX }; /* of model->attention */
enum { ATTENTION_NORM, FEED_NORM, OUT_NORM };

static void scale_to_one(const float *restrict x, const float *restrict gain, float *restrict out)
{
    float s[8] = {0.0f};
    for (size_t i = 0; i < DIMENSIONS; i += 8)
        for (size_t lane = 0; lane < 8; lane++)
            s[lane] += x[i + lane] * x[i + lane];
    const float total = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
    const float factor = 1.0f / sqrtf(total * (1.0f / DIMENSIONS) + 1e-6f);
    for (size_t i = 0; i < DIMENSIONS; i++)
        out[i] = (x[i] * factor) * gain[i];
}

static void take_input(const omega_sequence *model, uint32_t row, uint8_t success, float *restrict out)
{
    const int8_t *codes = model->titles.codes + (size_t)row * DIMENSIONS;
    const float *outcome = model->success + (success ? DIMENSIONS : 0), scale = model->titles.scale[row];
    for (size_t i = 0; i < DIMENSIONS; i++)
        out[i] = model->input_scale * ((float)codes[i] * scale + outcome[i]);
}

omega_fault omega_sequence_events_by(omega_multiply *multiply_by, const omega_sequence *model, const uint32_t *rows,
                                     const uint8_t *success, size_t count, float *out)
{
    float scaled[EVENTS_AT_ONCE * DIMENSIONS];
    for (size_t first = 0; first < count; first += EVENTS_AT_ONCE) {
        const size_t taken = count - first < EVENTS_AT_ONCE ? count - first : EVENTS_AT_ONCE;
        float *events = out + first * EVENT;
        for (size_t i = 0; i < taken; i++) {
            if (rows[first + i] >= model->titles.rows)
                return (omega_fault){OMEGA_ROW_OUTSIDE, first + i};
            take_input(model, rows[first + i], success[first + i], events + i * EVENT);
            scale_to_one(events + i * EVENT, model->norms + ATTENTION_NORM * DIMENSIONS, scaled + i * DIMENSIONS);
        }
        multiply_by(scaled, taken, DIMENSIONS, model->attention + KEY * MATRIX,
                    model->attention_scale + KEY * DIMENSIONS, DIMENSIONS, events + DIMENSIONS, EVENT);
        multiply_by(scaled, taken, DIMENSIONS, model->attention + VALUE * MATRIX,
                    model->attention_scale + VALUE * DIMENSIONS, DIMENSIONS, events + 2 * DIMENSIONS, EVENT);
    }
    return (omega_fault){OMEGA_FINE, 0};
}

typedef omega_sequence_running running;

static running none_taken(void)
{
    running none = {.sum = {0.0f}};
    for (size_t head = 0; head < HEADS; head++)
        none.top[head] = -FLT_MAX;
    return none;
}

static void take_event(running *so_far, const float *restrict product, const float *restrict distance,
                       const float *restrict value)
{
    float keep[HEADS], power[HEADS];
    for (size_t head = 0; head < HEADS; head++) {
        const float logit = product[head] + distance[head], old = so_far->top[head];
        const float top = logit > old ? logit : old;
        keep[head] = omega_power_of_e(old - top);
        power[head] = omega_power_of_e(logit - top);
        so_far->top[head] = top;
        so_far->sum[head] = so_far->sum[head] * keep[head] + power[head];
    }
    for (size_t i = 0; i < DIMENSIONS; i += HEADS)
        for (size_t head = 0; head < HEADS; head++)
            so_far->mixed[i + head] = so_far->mixed[i + head] * keep[head] + power[head] * value[i + head];
}

/* The weighted mean of what both have taken in. */
static void mean_of_both(const running *newer, const running *older, float *restrict out)
{
    float a[HEADS], b[HEADS], share[HEADS];
    for (size_t head = 0; head < HEADS; head++) {
        const float top = newer->top[head] > older->top[head] ? newer->top[head] : older->top[head];
        a[head] = omega_power_of_e(newer->top[head] - top);
        b[head] = omega_power_of_e(older->top[head] - top);
        share[head] = 1.0f / (newer->sum[head] * a[head] + older->sum[head] * b[head]);
    }
    for (size_t i = 0; i < DIMENSIONS; i += HEADS)
        for (size_t head = 0; head < HEADS; head++)
            out[i + head] =
                (newer->mixed[i + head] * a[head] + older->mixed[i + head] * b[head]) * share[head];
}

static void mean_of(const running *taken, float *restrict out)
{
    for (size_t i = 0; i < DIMENSIONS; i += HEADS)
        for (size_t head = 0; head < HEADS; head++)
            out[i + head] = taken->mixed[i + head] * (1.0f / taken->sum[head]);
}

/* products[p][h] = (sum over e of query[8e + h] * key_p[8e + h]) * (1 / sqrt(8)) */
static void key_products(const float *restrict query, const float *restrict events, size_t held,
                         float *restrict products)
{
    for (size_t p = 0; p < held; p++) {
        const float *key = events + p * EVENT + DIMENSIONS;
        float sums[HEADS] = {0.0f};
        for (size_t i = 0; i < DIMENSIONS; i += HEADS)
            for (size_t head = 0; head < HEADS; head++)
                sums[head] += query[i + head] * key[i + head];
        for (size_t head = 0; head < HEADS; head++)
            products[p * HEADS + head] = sums[head] * 0x1.6a09e6p-2f;
    }
}

/* The mixed values of all events, and of those without each one whose place in the window is 1 to left - 1: the running
 * softmax of the newer ones, then, from the other end, that of the older ones, each one place nearer. */
static void mix_values(const omega_sequence *model, const float *events, size_t held, size_t left,
                       omega_sequence_workspace *space)
{
    const float *products = space->products[0];
    const size_t window = held < WINDOW ? held : WINDOW;
    running newer = none_taken(), older = none_taken();
    for (size_t p = 0; p < window; p++) {
        space->newer[p] = newer;
        take_event(&newer, products + p * HEADS, model->distance + p * HEADS, events + p * EVENT + 2 * DIMENSIONS);
    }
    mean_of(&newer, space->mixed[0]);
    for (size_t p = held; p-- > 1;) {
        if (p < left)
            mean_of_both(&space->newer[p], &older, space->mixed[1 + p]);
        take_event(&older, products + p * HEADS, model->distance + (p - 1) * HEADS,
                   events + p * EVENT + 2 * DIMENSIONS);
    }
}

/* The same without the newest event: the next one asks. */
static void mix_without_newest(const omega_sequence *model, const float *events, size_t held,
                               omega_sequence_workspace *space)
{
    running taken = none_taken();
    for (size_t p = 1; p < held; p++)
        take_event(&taken, space->products[1] + p * HEADS, model->distance + (p - 1) * HEADS,
                   events + p * EVENT + 2 * DIMENSIONS);
    mean_of(&taken, space->mixed[1]);
}

static void feed_forward(omega_multiply *multiply_by, const omega_sequence *model, size_t states,
                         omega_sequence_workspace *space, float *out)
{
    for (size_t state = 0; state < states; state++)
        scale_to_one(space->carried[state], model->norms + FEED_NORM * DIMENSIONS, space->mixed[state]);
    multiply_by(space->mixed[0], states, DIMENSIONS, model->feed_in, model->feed_in_scale, FEED, space->inner[0], FEED);
    for (size_t state = 0; state < states; state++)
        for (size_t i = 0; i < FEED; i++) {
            const float sum = space->inner[state][i] + model->feed_in_bias[i];
            space->inner[state][i] = sum > 0.0f ? sum : 0.0f;
        }
    multiply_by(space->inner[0], states, FEED, model->feed_out, model->feed_out_scale, DIMENSIONS, space->mixed[0],
                DIMENSIONS);
    for (size_t state = 0; state < states; state++) {
        for (size_t i = 0; i < DIMENSIONS; i++)
            space->carried[state][i] += space->mixed[state][i] + model->feed_out_bias[i];
        scale_to_one(space->carried[state], model->norms + OUT_NORM * DIMENSIONS, out + state * DIMENSIONS);
    }
}

void omega_sequence_states_by(omega_multiply *multiply_by, const omega_sequence *model, const float *events,
                              size_t held, size_t left, omega_sequence_workspace *space, float *out)
{
    const size_t asking = left > 0 && held > 1 ? 2 : 1, states = asking == 2 ? 1 + left : 1;
    for (size_t i = 0; i < asking; i++)
        scale_to_one(events + i * EVENT, model->norms + ATTENTION_NORM * DIMENSIONS, space->mixed[i]);
    multiply_by(space->mixed[0], asking, DIMENSIONS, model->attention + QUERY * MATRIX,
                model->attention_scale + QUERY * DIMENSIONS, DIMENSIONS, space->carried[0], DIMENSIONS);
    for (size_t i = 0; i < asking; i++)
        key_products(space->carried[i], events, held, space->products[i]);
    mix_values(model, events, held, left, space);
    if (asking == 2)
        mix_without_newest(model, events, held, space);
    multiply_by(space->mixed[0], states, DIMENSIONS, model->attention + MIX * MATRIX,
                model->attention_scale + MIX * DIMENSIONS, DIMENSIONS, space->carried[0], DIMENSIONS);
    for (size_t state = 0; state < states; state++)
        for (size_t i = 0; i < DIMENSIONS; i++)
            space->carried[state][i] += events[(state == 1 ? EVENT : 0) + i];
    feed_forward(multiply_by, model, states, space, out);
    if (states < 1 + left) /* without its only event a history is empty */
        memset(out + DIMENSIONS, 0, DIMENSIONS * sizeof *out);
}
