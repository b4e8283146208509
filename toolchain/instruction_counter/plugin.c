/* A QEMU plugin that counts the guest's instructions between marks.
 *
 * A mark is the system call prctl(OMEGA_MARK, number, ...), which Linux answers with EINVAL and which costs nothing
 * elsewhere. At each mark one line is appended to the file that the argument out= names:
 *
 *     mark <number> <instructions since the mark before> <threads>
 *
 * and the count starts anew. The number of threads is the highest since the mark before: QEMU adds to the count without
 * a lock, so only a line that says 1 is exact. With one thread the count is exact: a translated block is added when it
 * is entered, a system call ends its block, so the call of the closing mark is counted and that of the opening is not.
 * Were a block left in the midst (by a fault in the guest), its rest would be counted too; code under count has no
 * faults.
 *
 * Debian ships QEMU's plugin interface without its header, so what is used of version 1 of it (QEMU 6.0 to 8.2) is
 * declared here; "QEMU TCG Plugins" in QEMU's manual describes it.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "mark.h"

#define EXPORTED __attribute__((visibility("default")))
#define SYSTEM_CALL_PRCTL_AARCH64 167
#define LINE_BYTES 96

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;

typedef struct {
    const char *target_name;
    struct {
        int min, cur;
    } version;
    bool system_emulation;
    struct {
        int smp_vcpus, max_vcpus; /* meaningful under system emulation only */
    } system;
} qemu_info_t;

enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

typedef void (*on_vcpu)(qemu_plugin_id_t id, unsigned int vcpu);
typedef void (*on_translation)(qemu_plugin_id_t id, struct qemu_plugin_tb *block);
typedef void (*on_system_call)(qemu_plugin_id_t id, unsigned int vcpu, int64_t call, uint64_t a1, uint64_t a2,
                               uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);

void qemu_plugin_register_vcpu_init_cb(qemu_plugin_id_t id, on_vcpu callback);
void qemu_plugin_register_vcpu_exit_cb(qemu_plugin_id_t id, on_vcpu callback);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, on_translation callback);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id, on_system_call callback);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, enum qemu_plugin_op operation,
                                              void *counter, uint64_t amount);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);

EXPORTED int qemu_plugin_version = 1;

static uint64_t instructions; /* since the last mark, of all threads */
static int threads, most_threads;
static int out = -1;

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &instructions,
                                             qemu_plugin_tb_n_insns(block));
}

static void thread_began(qemu_plugin_id_t id, unsigned int vcpu)
{
    (void)id, (void)vcpu;
    const int now = __atomic_add_fetch(&threads, 1, __ATOMIC_SEQ_CST);
    int most = __atomic_load_n(&most_threads, __ATOMIC_SEQ_CST);
    while (now > most && !__atomic_compare_exchange_n(&most_threads, &most, now, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
}

static void thread_ended(qemu_plugin_id_t id, unsigned int vcpu)
{
    (void)id, (void)vcpu;
    __atomic_sub_fetch(&threads, 1, __ATOMIC_SEQ_CST);
}

static void system_call(qemu_plugin_id_t id, unsigned int vcpu, int64_t call, uint64_t option, uint64_t number,
                        uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (call != SYSTEM_CALL_PRCTL_AARCH64 || option != OMEGA_MARK)
        return;
    char line[LINE_BYTES];
    const int length = snprintf(line, sizeof line, "mark %llu %llu %d\n", (unsigned long long)number,
                                (unsigned long long)instructions, most_threads);
    /* One write a line: lines of two threads do not mix. A lost line is noticed by who reads, as a missing mark. */
    if (write(out, line, (size_t)length) != length)
        fputs("instruction counter: a mark could not be written\n", stderr);
    most_threads = threads;
    instructions = 0;
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
    const char *path = NULL;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "out=", 4) != 0 || argv[i][4] == '\0') {
            fprintf(stderr, "instruction counter: expected out=FILE, got %s\n", argv[i]);
            return -1;
        }
        path = argv[i] + 4;
    }
    if (path == NULL) {
        fputs("instruction counter: expected the argument out=FILE\n", stderr);
        return -1;
    }
    if (info->system_emulation || strcmp(info->target_name, "aarch64") != 0) {
        fprintf(stderr, "instruction counter: expected qemu-aarch64, got QEMU for %s%s\n", info->target_name,
                info->system_emulation ? " (system)" : "");
        return -1;
    }
    out = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (out < 0) {
        fprintf(stderr, "instruction counter: %s cannot be opened for writing\n", path);
        return -1;
    }
    qemu_plugin_register_vcpu_init_cb(id, thread_began);
    qemu_plugin_register_vcpu_exit_cb(id, thread_ended);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, system_call);
    return 0;
}
