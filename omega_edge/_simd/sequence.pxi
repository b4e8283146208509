"""Included by _kernels.pyx: the sequence encoder."""


cdef class SequenceKernels(CodeKernels):
    """The kernels of the sequence encoder; Kernels adds the others."""

    def sequence_events(self, model, rows, success, out) -> None:
        """Input, key and value of events: out float32[e, 192] of titles rows uint32[e] and outcomes success uint8[e].

        model: (codes int8[n, 64], scale float32[n], success float32[2, 64], distance float32[64, 8], norms
        float32[3, 64], attention int8[4, 64, 64], attention_scale float32[4, 64], feed_in int8[64, 128], feed_in_scale float32[128],
        feed_in_bias float32[128], feed_out int8[128, 64], feed_out_scale float32[64], feed_out_bias float32[64],
        input_scale), as kernels.h describes them. A row past the table raises ValueError.
        """
        cdef Views views
        cdef omega_sequence encoder
        cdef Py_buffer *view
        cdef const uint32_t *titles
        cdef const uint8_t *outcomes
        cdef float *written
        cdef size_t count
        cdef omega_fault fault
        views.count = 0
        try:
            hold_sequence(&views, model, &encoder)
            view = hold(&views, rows, "rows", c"I", 1, False)
            count, titles = view.shape[0], <const uint32_t *> view.buf
            outcomes = <const uint8_t *> hold_list(&views, success, "success", c"B", count, "one for each row", False)
            view = hold(&views, out, "out", c"f", 2, True)
            check_length(view, "out", 0, count, "one for each of rows")
            check_length(view, "out", 1, OMEGA_SEQUENCE_EVENT, "input, key and value")
            written = <float *> view.buf
            check_outputs(&views)
            with nogil:
                fault = self.table.sequence_events(&encoder, titles, outcomes, count, written)
            raise_fault(fault)
        finally:
            release(&views)

    def sequence_states(self, model, events, out) -> None:
        """State of a household after its newest 64 events, out[0], and without event i of them, out[1 + i], zeros where
        that leaves none.

        model as in sequence_events, which made events float32[e, 192], newest first, e from 1 to 65; out
        float32[1 + left, 64], left at most the smaller of e and 64.
        """
        cdef Views views
        cdef omega_sequence encoder
        cdef Py_buffer *view
        cdef const float *made
        cdef float *states
        cdef size_t held, left
        cdef omega_sequence_workspace *workspace = NULL
        views.count = 0
        try:
            hold_sequence(&views, model, &encoder)
            view = hold(&views, events, "events", c"f", 2, False)
            check_length(view, "events", 1, OMEGA_SEQUENCE_EVENT, "input, key and value")
            if not 1 <= view.shape[0] <= OMEGA_SEQUENCE_WINDOW + 1:
                raise ValueError(f"events: expected 1 to {OMEGA_SEQUENCE_WINDOW + 1} events, got {view.shape[0]}")
            held, made = view.shape[0], <const float *> view.buf
            view = hold(&views, out, "out", c"f", 2, True)
            check_length(view, "out", 1, OMEGA_SEQUENCE_DIMENSIONS, "dimensions of a state")
            if not 1 <= view.shape[0] <= 1 + <Py_ssize_t> min(held, <size_t> OMEGA_SEQUENCE_WINDOW):
                raise ValueError(f"out: expected 1 to {1 + min(held, <size_t> OMEGA_SEQUENCE_WINDOW)} states, one whole "
                                 f"and one without each event, got {view.shape[0]}")
            left, states = view.shape[0] - 1, <float *> view.buf
            check_outputs(&views)
            workspace = <omega_sequence_workspace *> malloc(sizeof(omega_sequence_workspace))
            if workspace == NULL:
                raise MemoryError(f"no {sizeof(omega_sequence_workspace)} bytes for the states of a sequence")
            with nogil:
                self.table.sequence_states(&encoder, made, held, left, workspace, states)
        finally:
            free(workspace)
            release(&views)


cdef int hold_sequence(Views *views, object model, omega_sequence *encoder) except -1:
    (codes, scale, success, distance, norms, attention, attention_scale, feed_in, feed_in_scale, feed_in_bias,
     feed_out, feed_out_scale, feed_out_bias, input_scale) = model
    hold_codes(views, codes, scale, &encoder.titles)
    if encoder.titles.dimensions != OMEGA_SEQUENCE_DIMENSIONS:
        raise ValueError(f"codes: expected {OMEGA_SEQUENCE_DIMENSIONS} dimensions, got {encoder.titles.dimensions}")
    d, f = OMEGA_SEQUENCE_DIMENSIONS, OMEGA_SEQUENCE_FEED
    encoder.success = <const float *> hold_shaped(views, success, "success", c"f", (2, d))
    encoder.distance = <const float *> hold_shaped(views, distance, "distance", c"f",
                                                   (OMEGA_SEQUENCE_WINDOW, OMEGA_SEQUENCE_HEADS))
    encoder.norms = <const float *> hold_shaped(views, norms, "norms", c"f", (3, d))
    encoder.attention = <const int8_t *> hold_shaped(views, attention, "attention", c"b", (4, d, d))
    encoder.attention_scale = <const float *> hold_shaped(views, attention_scale, "attention_scale", c"f", (4, d))
    encoder.feed_in = <const int8_t *> hold_shaped(views, feed_in, "feed_in", c"b", (d, f))
    encoder.feed_in_scale = <const float *> hold_shaped(views, feed_in_scale, "feed_in_scale", c"f", (f,))
    encoder.feed_in_bias = <const float *> hold_shaped(views, feed_in_bias, "feed_in_bias", c"f", (f,))
    encoder.feed_out = <const int8_t *> hold_shaped(views, feed_out, "feed_out", c"b", (f, d))
    encoder.feed_out_scale = <const float *> hold_shaped(views, feed_out_scale, "feed_out_scale", c"f", (d,))
    encoder.feed_out_bias = <const float *> hold_shaped(views, feed_out_bias, "feed_out_bias", c"f", (d,))
    encoder.input_scale = input_scale
    return 0


cdef void *hold_shaped(Views *views, object array, str name, char kind, tuple shape) except NULL:
    cdef Py_buffer *view = hold(views, array, name, kind, len(shape), False)
    for axis, length in enumerate(shape):
        check_length(view, name, axis, length, "of the encoder")
    return view.buf
