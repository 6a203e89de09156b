/* A disk that fails on demand, for one folder: loaded into a server by LD_PRELOAD, driven through a mapped file.
 *
 * FAULTY_DISK_CONTROL names the file, which holds one `struct control`; `__init__.py` beside this has the same in Python.
 * A rule says which calls on which paths meet which fate, from the n-th such call on, so many times. Rules may change
 * while the server runs: `calls` is written last. Without a rule a call costs one load more.
 *
 * What is wrapped is what Rust's standard library, CPython and RocksDB call (`nm -D`): with and without 64 in the name.
 * RocksDB's notes to itself (its LOG, by fopen) are not data and are left alone. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN = 1, READ = 2, WRITE = 4, SYNC = 8, TRUNCATE = 16, RENAME = 32, UNLINK = 64, LINK = 128, MKDIR = 256 };
enum { FAIL = 1, SHORT, SLEEP, STOP, STOP_HALFWAY };

#define RULES 4
#define PATH_BYTES 1024

struct rule {
    uint32_t calls;   /* which calls, 0: the rule is off */
    uint32_t action;  /* their fate */
    int32_t error;    /* FAIL: errno */
    uint32_t sleep_ms;
    int64_t first;    /* from the n-th call on, from 1 ... */
    int64_t count;    /* ... for so many calls */
    int64_t seen;     /* calls that fitted */
    int64_t hits;     /* calls that met their fate */
    char part[64];    /* only paths with this text in them */
};

struct control {
    char folder[512]; /* only this folder and what is below it */
    int64_t wall_clock_shift_ns;
    int64_t monotonic_shift_ns;
    struct rule rules[RULES];
};

static struct control *control;

__attribute__((constructor)) static void map_control(void) {
    const char *path = getenv("FAULTY_DISK_CONTROL");
    int fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        fprintf(stderr, "faulty disk: FAULTY_DISK_CONTROL can't be opened\n");
        abort();
    }
    void *mapped = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED) abort();
    control = mapped;
}

#define REAL(name) \
    ({ static __typeof__(name) *real; \
       if (real == NULL) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name); \
       real; })

static int is_watched(const char *path) {
    size_t length = strlen(control->folder);
    return length > 0 && strncmp(path, control->folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int anyone_cares(unsigned call) {
    if (control == NULL) return 0;
    for (int i = 0; i < RULES; i++)
        if (__atomic_load_n(&control->rules[i].calls, __ATOMIC_ACQUIRE) & call) return 1;
    return 0;
}

/* The first rule that this call meets. */
static struct rule *met(unsigned call, const char *path) {
    if (!is_watched(path)) return NULL;
    for (int i = 0; i < RULES; i++) {
        struct rule *rule = &control->rules[i];
        if (!(__atomic_load_n(&rule->calls, __ATOMIC_ACQUIRE) & call) || strstr(path, rule->part) == NULL) continue;
        int64_t number = __atomic_add_fetch(&rule->seen, 1, __ATOMIC_RELAXED);
        if (number < rule->first || number - rule->first >= rule->count) continue;
        __atomic_add_fetch(&rule->hits, 1, __ATOMIC_RELEASE);
        return rule;
    }
    return NULL;
}

static struct rule *met_fd(unsigned call, int fd) {
    char link[64], path[PATH_BYTES];
    if (!anyone_cares(call)) return NULL;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length < 0) return NULL;
    path[length] = 0;
    return met(call, path);
}

static struct rule *met_path(unsigned call, const char *path) {
    return anyone_cares(call) ? met(call, path) : NULL;
}

static void stop(void) {
    kill(getpid(), SIGSTOP);
}

/* Nonzero: the call fails, errno says why. */
static int fails(struct rule *rule) {
    if (rule == NULL) return 0;
    if (rule->action == FAIL) {
        errno = rule->error;
        return 1;
    }
    if (rule->action == STOP) stop();
    if (rule->action == SLEEP) /* or until the rule is lifted */
        for (uint32_t ms = 0; ms < rule->sleep_ms && __atomic_load_n(&rule->calls, __ATOMIC_ACQUIRE); ms += 5) usleep(5000);
    return 0;
}

/* How much of a write of `count` bytes is done. */
static size_t part_of(struct rule *rule, size_t count) {
    int is_short = rule != NULL && (rule->action == SHORT || rule->action == STOP_HALFWAY);
    return is_short && count > 1 ? count / 2 : count;
}

static ssize_t wrote(struct rule *rule, ssize_t count) {
    if (rule != NULL && rule->action == STOP_HALFWAY) stop();
    return count;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    struct rule *rule = met_fd(WRITE, fd);
    return fails(rule) ? -1 : wrote(rule, REAL(write)(fd, bytes, part_of(rule, count)));
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    struct rule *rule = met_fd(WRITE, fd);
    return fails(rule) ? -1 : wrote(rule, REAL(pwrite)(fd, bytes, part_of(rule, count), at));
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    struct rule *rule = met_fd(WRITE, fd);
    return fails(rule) ? -1 : wrote(rule, REAL(pwrite64)(fd, bytes, part_of(rule, count), at));
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    struct rule *rule = met_fd(WRITE, fd);
    if (fails(rule)) return -1;
    if (count > 0 && part_of(rule, 2) == 1) /* the first part, in part */
        return wrote(rule, REAL(write)(fd, parts[0].iov_base, part_of(rule, parts[0].iov_len)));
    return REAL(writev)(fd, parts, count);
}

ssize_t read(int fd, void *bytes, size_t count) {
    return fails(met_fd(READ, fd)) ? -1 : REAL(read)(fd, bytes, count);
}

ssize_t pread(int fd, void *bytes, size_t count, off_t at) {
    return fails(met_fd(READ, fd)) ? -1 : REAL(pread)(fd, bytes, count, at);
}

ssize_t pread64(int fd, void *bytes, size_t count, off64_t at) {
    return fails(met_fd(READ, fd)) ? -1 : REAL(pread64)(fd, bytes, count, at);
}

int fsync(int fd) { return fails(met_fd(SYNC, fd)) ? -1 : REAL(fsync)(fd); }

int fdatasync(int fd) { return fails(met_fd(SYNC, fd)) ? -1 : REAL(fdatasync)(fd); }

int ftruncate(int fd, off_t length) { return fails(met_fd(TRUNCATE, fd)) ? -1 : REAL(ftruncate)(fd, length); }

int ftruncate64(int fd, off64_t length) { return fails(met_fd(TRUNCATE, fd)) ? -1 : REAL(ftruncate64)(fd, length); }

int rename(const char *from, const char *to) { return fails(met_path(RENAME, to)) ? -1 : REAL(rename)(from, to); }

int unlink(const char *path) { return fails(met_path(UNLINK, path)) ? -1 : REAL(unlink)(path); }

int link(const char *from, const char *to) { return fails(met_path(LINK, to)) ? -1 : REAL(link)(from, to); }

int mkdir(const char *path, mode_t mode) { return fails(met_path(MKDIR, path)) ? -1 : REAL(mkdir)(path, mode); }

#define MODE_OF(flags) \
    ({ va_list rest; va_start(rest, flags); \
       mode_t mode = (flags) & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; va_end(rest); mode; })

int open(const char *path, int flags, ...) {
    mode_t mode = MODE_OF(flags);
    return fails(met_path(OPEN, path)) ? -1 : REAL(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    mode_t mode = MODE_OF(flags);
    return fails(met_path(OPEN, path)) ? -1 : REAL(open64)(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    mode_t mode = MODE_OF(flags);
    return fails(met_path(OPEN, path)) ? -1 : REAL(openat)(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    mode_t mode = MODE_OF(flags);
    return fails(met_path(OPEN, path)) ? -1 : REAL(openat64)(folder, path, flags, mode);
}

/* --- clocks ------------------------------------------------------------------------------------------------------ */

static int64_t shift_ns(clockid_t clock) {
    if (control == NULL) return 0;
    switch (clock) {
        case CLOCK_REALTIME:
        case CLOCK_REALTIME_COARSE: return __atomic_load_n(&control->wall_clock_shift_ns, __ATOMIC_RELAXED);
        case CLOCK_MONOTONIC:
        case CLOCK_MONOTONIC_COARSE: return __atomic_load_n(&control->monotonic_shift_ns, __ATOMIC_RELAXED);
        default: return 0;
    }
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    int64_t shift = shift_ns(clock);
    if (result == 0 && shift != 0) {
        int64_t ns = now->tv_nsec + shift % 1000000000;
        now->tv_sec += shift / 1000000000 + (ns >= 1000000000) - (ns < 0);
        now->tv_nsec = ns + (ns < 0 ? 1000000000 : ns >= 1000000000 ? -1000000000 : 0);
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = REAL(gettimeofday)(now, zone);
    if (result == 0) now->tv_sec += shift_ns(CLOCK_REALTIME) / 1000000000;
    return result;
}

time_t time(time_t *now) {
    struct timespec shifted;
    clock_gettime(CLOCK_REALTIME, &shifted);
    if (now != NULL) *now = shifted.tv_sec;
    return shifted.tv_sec;
}
