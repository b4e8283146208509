// Records what a process submits to the files under one folder, for power-cut images: preload it, then
//   WRITE_RECORDER_ROOT   absolute path of the folder
//   WRITE_RECORDER_LOG    file to append records to, outside the folder
// A record: kind u8, file number u32, offset u64, length u64 (little-endian), then `length` bytes.
//   kind 1 a file is opened: the bytes are its path, its number is new; offset 1: every write to it is synchronous
//   kind 2 write   kind 3 fsync or fdatasync   kind 4 size set to offset
//   kind 5 rename: the bytes are both paths, separated by a zero   kind 6 unlink: the path
// One thread writes at a time in the processes that this is used on; the lock only keeps records whole.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MAX_FD = 1024, OPENED = 1, WRITTEN = 2, SYNCED = 3, SIZED = 4, RENAMED = 5, UNLINKED = 6 };

static uint32_t file_of[MAX_FD]; // 0: not under the folder
static uint32_t files;
static int log_fd = -1;
static char root[4096];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void emit(uint8_t kind, uint32_t file, uint64_t offset, const void *bytes, uint64_t length) {
    static __typeof__(&write) real_write;
    if (!real_write) real_write = REAL(write);
    uint8_t header[21];
    header[0] = kind;
    memcpy(header + 1, &file, 4);
    memcpy(header + 5, &offset, 8);
    memcpy(header + 13, &length, 8);
    pthread_mutex_lock(&lock);
    if (real_write(log_fd, header, sizeof header) != (ssize_t)sizeof header) abort();
    for (uint64_t done = 0; done < length;) {
        ssize_t wrote = real_write(log_fd, (const char *)bytes + done, length - done);
        if (wrote <= 0) abort();
        done += (uint64_t)wrote;
    }
    pthread_mutex_unlock(&lock);
}

static int under_root(const char *path) {
    if (log_fd == -1) {
        const char *folder = getenv("WRITE_RECORDER_ROOT"), *name = getenv("WRITE_RECORDER_LOG");
        if (!folder || !name) {
            log_fd = -2;
        } else {
            strncpy(root, folder, sizeof root - 1);
            log_fd = REAL(open)(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
            if (log_fd < 0) abort();
        }
    }
    return log_fd >= 0 && !strncmp(path, root, strlen(root));
}

static int opened(int fd, const char *path, int flags) {
    if (fd < 0 || fd >= MAX_FD) return fd;
    file_of[fd] = 0;
    if (under_root(path)) {
        file_of[fd] = ++files;
        emit(OPENED, files, (flags & (O_DSYNC | O_SYNC)) != 0, path, strlen(path));
        if (flags & O_TRUNC) emit(SIZED, files, 0, 0, 0);
    }
    return fd;
}

static uint32_t file_at(int fd) { return fd >= 0 && fd < MAX_FD ? file_of[fd] : 0; }

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list arguments;                                                                                             \
        va_start(arguments, flags);                                                                                    \
        mode_t mode = (flags & O_CREAT) ? va_arg(arguments, mode_t) : 0;                                               \
        va_end(arguments);                                                                                             \
        return opened(REAL(name)(path, flags, mode), path, flags);                                                     \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
    int name(int folder, const char *path, int flags, ...) {                                                           \
        va_list arguments;                                                                                             \
        va_start(arguments, flags);                                                                                    \
        mode_t mode = (flags & O_CREAT) ? va_arg(arguments, mode_t) : 0;                                               \
        va_end(arguments);                                                                                             \
        return opened(REAL(name)(folder, path, flags, mode), path, flags);                                             \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    if (fd >= 0 && fd < MAX_FD) file_of[fd] = 0;
    return REAL(close)(fd);
}

#define PWRITE(name, off)                                                                                              \
    ssize_t name(int fd, const void *bytes, size_t length, off offset) {                                               \
        ssize_t wrote = REAL(name)(fd, bytes, length, offset);                                                         \
        if (wrote > 0 && file_at(fd)) emit(WRITTEN, file_at(fd), (uint64_t)offset, bytes, (uint64_t)wrote);            \
        return wrote;                                                                                                  \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

static void emit_parts(int fd, const struct iovec *parts, int count, uint64_t offset, ssize_t wrote) {
    for (int part = 0; part < count && wrote > 0 && file_at(fd); part++) {
        uint64_t length = parts[part].iov_len < (size_t)wrote ? parts[part].iov_len : (uint64_t)wrote;
        emit(WRITTEN, file_at(fd), offset, parts[part].iov_base, length);
        offset += length;
        wrote -= (ssize_t)length;
    }
}

#define PWRITEV(name, off)                                                                                             \
    ssize_t name(int fd, const struct iovec *parts, int count, off offset) {                                           \
        ssize_t wrote = REAL(name)(fd, parts, count, offset);                                                          \
        emit_parts(fd, parts, count, (uint64_t)offset, wrote);                                                         \
        return wrote;                                                                                                  \
    }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

ssize_t write(int fd, const void *bytes, size_t length) {
    off_t offset = file_at(fd) ? lseek(fd, 0, SEEK_CUR) : 0;
    ssize_t wrote = REAL(write)(fd, bytes, length);
    if (wrote > 0 && file_at(fd)) emit(WRITTEN, file_at(fd), (uint64_t)offset, bytes, (uint64_t)wrote);
    return wrote;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    off_t offset = file_at(fd) ? lseek(fd, 0, SEEK_CUR) : 0;
    ssize_t wrote = REAL(writev)(fd, parts, count);
    emit_parts(fd, parts, count, (uint64_t)offset, wrote);
    return wrote;
}

#define SYNC(name)                                                                                                     \
    int name(int fd) {                                                                                                 \
        int failed = REAL(name)(fd);                                                                                   \
        if (!failed && file_at(fd)) emit(SYNCED, file_at(fd), 0, 0, 0);                                                \
        return failed;                                                                                                 \
    }
SYNC(fsync)
SYNC(fdatasync)

#define SIZE(name, off)                                                                                                \
    int name(int fd, off size) {                                                                                       \
        int failed = REAL(name)(fd, size);                                                                             \
        if (!failed && file_at(fd)) emit(SIZED, file_at(fd), (uint64_t)size, 0, 0);                                    \
        return failed;                                                                                                 \
    }
SIZE(ftruncate, off_t)
SIZE(ftruncate64, off64_t)

#define ALLOCATE(name, off)                                                                                            \
    int name(int fd, off offset, off length) {                                                                         \
        int failed = REAL(name)(fd, offset, length);                                                                   \
        struct stat facts;                                                                                             \
        if (!failed && file_at(fd) && !fstat(fd, &facts)) emit(SIZED, file_at(fd), (uint64_t)facts.st_size, 0, 0);     \
        return failed;                                                                                                 \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

static void emit_rename(const char *from, const char *to) {
    char both[8192];
    size_t first = strlen(from) + 1, second = strlen(to);
    if (first + second > sizeof both) abort();
    memcpy(both, from, first);
    memcpy(both + first, to, second);
    emit(RENAMED, 0, 0, both, first + second);
}

int rename(const char *from, const char *to) {
    int failed = REAL(rename)(from, to);
    if (!failed && under_root(to)) emit_rename(from, to);
    return failed;
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    int failed = REAL(renameat)(from_folder, from, to_folder, to);
    if (!failed && under_root(to)) emit_rename(from, to);
    return failed;
}

int unlink(const char *path) {
    int failed = REAL(unlink)(path);
    if (!failed && under_root(path)) emit(UNLINKED, 0, 0, path, strlen(path));
    return failed;
}

int unlinkat(int folder, const char *path, int flags) {
    int failed = REAL(unlinkat)(folder, path, flags);
    if (!failed && under_root(path)) emit(UNLINKED, 0, 0, path, strlen(path));
    return failed;
}
