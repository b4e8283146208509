/* The mark between which instructions are counted; plugin.c says what it does. */
#ifndef OMEGA_MARK_H
#define OMEGA_MARK_H

#define OMEGA_MARK 0x4f4d4547 /* "OMEG": no option of prctl */
#define OMEGA_MARK_OPENS 0    /* number of a mark that begins a count; any other ends the count of that number */

#ifdef __aarch64__
/* Four instructions set the arguments, and one calls. */
static inline void omega_mark(long number)
{
    register long call __asm__("x8") = 167;
    register long option __asm__("x0") = OMEGA_MARK;
    register long second __asm__("x1") = number;
    __asm__ volatile("svc #0" : "+r"(option) : "r"(call), "r"(second) : "memory");
}
#endif

#endif
