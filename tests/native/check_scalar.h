/* The scalar kernels against arithmetic that shares nothing with them. */
#ifndef OMEGA_EDGE_TESTS_CHECK_SCALAR_H
#define OMEGA_EDGE_TESTS_CHECK_SCALAR_H

#include "problem.h"

/* NULL, or the first claim of the contract that does not hold. */
const char *check_scalar(const problem *p);

#endif
