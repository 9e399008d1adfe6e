/* Records what a process does to the files below a directory, in order.
 *
 * Preloaded, it stands between the process and the system's calls. Each call is made under a lock and
 * written to a log with what it did; see recorder.py for who reads that. Calls that are not here, and
 * writes to mapped files, are found out by recorder.py, which compares what was recorded with what is
 * there in the end.
 *
 * POWER_DIRECTORY  the directory
 * POWER_LOG        where the log goes
 * POWER_MARKS      a file: what is written to it goes into the log as a mark
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define ROOM (3 * PATH_MAX)

struct record {
    char kind;
    char padding[7];
    uint64_t inode;
    uint64_t number; /* an offset, a length, a time or which sync it is, by the kind */
    uint64_t length; /* of what follows */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *directory, *marks;
static int records = -1;
static uint64_t syncs;

__attribute__((constructor)) static void begin(void) {
    directory = getenv("POWER_DIRECTORY");
    marks = getenv("POWER_MARKS");
    int file = syscall(SYS_openat, AT_FDCWD, getenv("POWER_LOG"),
                       O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    /* Where nobody who closes what he does not know of would look for it. */
    records = fcntl(file, F_DUPFD_CLOEXEC, 500);
    syscall(SYS_close, file);
    if (!directory || !marks || records < 0)
        abort();
}

static void note(char kind, uint64_t inode, uint64_t number, const struct iovec *data, int count) {
    int before = errno;
    struct record record = {.kind = kind, .inode = inode, .number = number};
    for (int i = 0; i < count; i++)
        record.length += data[i].iov_len;
    if (syscall(SYS_write, records, &record, sizeof record) != sizeof record)
        abort();
    for (int i = 0; i < count; i++)
        if (syscall(SYS_write, records, data[i].iov_base, data[i].iov_len) != (long)data[i].iov_len)
            abort();
    errno = before;
}

static void note_text(char kind, uint64_t inode, const char *text) {
    struct iovec data = {(void *)text, strlen(text)};
    note(kind, inode, 0, &data, 1);
}

static int within(const char *path) {
    size_t length = strlen(directory);
    return !strncmp(path, directory, length) && (path[length] == '/' || !path[length]);
}

/* The path of an open file; says whether it is one of those that are recorded. */
static int watched(int file, char *path) {
    char link[64];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    errno = before;
    path[length < 0 ? 0 : length] = 0;
    return length > 0 && within(path);
}

/* A path as it is from the root. */
static const char *whole(int base, const char *path, char *room) {
    if (*path == '/')
        return path;
    if (base == AT_FDCWD) {
        if (!getcwd(room, PATH_MAX))
            abort();
    } else {
        watched(base, room);
    }
    strcat(room, "/");
    return strcat(room, path);
}

static uint64_t inode_of(int file) {
    struct stat found;
    return fstat(file, &found) ? 0 : found.st_ino;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define LOCKED(call) \
    pthread_mutex_lock(&lock); \
    __typeof__(call) done = call
#define UNLOCK pthread_mutex_unlock(&lock)

static int opened(int base, const char *name, int flags, mode_t mode) {
    char room[ROOM];
    const char *path = whole(base, name, room);
    if (!within(path) || !(flags & (O_CREAT | O_TRUNC)))
        return syscall(SYS_openat, base, name, flags, mode);
    int before = errno;
    pthread_mutex_lock(&lock);
    struct stat found;
    int was_there = !stat(path, &found);
    errno = before;
    int file = syscall(SYS_openat, base, name, flags, mode);
    if (file >= 0 && !was_there)
        note_text('C', inode_of(file), path);
    else if (file >= 0 && (flags & O_TRUNC))
        note('T', inode_of(file), 0, NULL, 0);
    UNLOCK;
    return file;
}

#define OPEN(name, parameters, base, path, extra) \
    int name parameters { \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, mode_t) : 0; \
        va_end(list); \
        return opened(base, path, flags | (extra), mode); \
    }
OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path, 0)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path, O_LARGEFILE)
OPEN(openat, (int base, const char *path, int flags, ...), base, path, 0)
OPEN(openat64, (int base, const char *path, int flags, ...), base, path, O_LARGEFILE)
int creat(const char *path, mode_t mode) {
    return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

/* What a write of so many bytes at an offset wrote; -1 for where the file stands after it. */
static void note_write(int file, off_t offset, const struct iovec *data, int count, ssize_t written) {
    char path[PATH_MAX];
    if (written <= 0 || !(watched(file, path) || !strcmp(path, marks)))
        return;
    char *all = malloc(written), *end = all;
    for (int i = 0; i < count && end < all + written; i++) {
        size_t left = all + written - end;
        size_t part = data[i].iov_len < left ? data[i].iov_len : left;
        memcpy(end, data[i].iov_base, part);
        end += part;
    }
    struct iovec joined = {all, written};
    int before = errno;
    if (offset < 0 || (fcntl(file, F_GETFL) & O_APPEND))
        offset = lseek(file, 0, SEEK_CUR) - written;
    errno = before;
    note(strcmp(path, marks) ? 'W' : 'A', inode_of(file), offset, &joined, 1);
    free(all);
}

ssize_t write(int file, const void *from, size_t count) {
    struct iovec data = {(void *)from, count};
    LOCKED(syscall(SYS_write, file, from, count));
    note_write(file, -1, &data, 1, done);
    UNLOCK;
    return done;
}

ssize_t writev(int file, const struct iovec *data, int count) {
    LOCKED(syscall(SYS_writev, file, data, count));
    note_write(file, -1, data, count, done);
    UNLOCK;
    return done;
}

ssize_t pwrite(int file, const void *from, size_t count, off_t offset) {
    struct iovec data = {(void *)from, count};
    LOCKED(syscall(SYS_pwrite64, file, from, count, offset));
    note_write(file, offset, &data, 1, done);
    UNLOCK;
    return done;
}
ssize_t pwrite64(int file, const void *from, size_t count, off_t offset) {
    return pwrite(file, from, count, offset);
}

ssize_t pwritev(int file, const struct iovec *data, int count, off_t offset) {
    REAL(pwritev);
    LOCKED(real(file, data, count, offset));
    note_write(file, offset, data, count, done);
    UNLOCK;
    return done;
}
ssize_t pwritev64(int file, const struct iovec *data, int count, off_t offset) {
    return pwritev(file, data, count, offset);
}

int ftruncate(int file, off_t length) {
    char path[PATH_MAX];
    LOCKED((int)syscall(SYS_ftruncate, file, length));
    if (!done && watched(file, path))
        note('T', inode_of(file), length, NULL, 0);
    UNLOCK;
    return done;
}
int ftruncate64(int file, off_t length) { return ftruncate(file, length); }

/* Whoever reserves room has to do without: SQLite and others then write zeros. */
int fallocate(int file, int mode, off_t offset, off_t length) {
    (void)file, (void)mode, (void)offset, (void)length;
    errno = EOPNOTSUPP;
    return -1;
}
int fallocate64(int file, int mode, off_t offset, off_t length) {
    return fallocate(file, mode, offset, length);
}
int posix_fallocate(int file, off_t offset, off_t length) {
    (void)file, (void)offset, (void)length;
    return EOPNOTSUPP;
}
int posix_fallocate64(int file, off_t offset, off_t length) {
    return posix_fallocate(file, offset, length);
}

/* Copies within the kernel: whoever asks for one then reads and writes. */
ssize_t copy_file_range(int from, off_t *at, int to, off_t *there, size_t count, unsigned flags) {
    (void)from, (void)at, (void)to, (void)there, (void)count, (void)flags;
    errno = EXDEV;
    return -1;
}
ssize_t sendfile(int to, int from, off_t *offset, size_t count) {
    (void)to, (void)from, (void)offset, (void)count;
    errno = EINVAL;
    return -1;
}
ssize_t sendfile64(int to, int from, off_t *offset, size_t count) {
    return sendfile(to, from, offset, count);
}

/* What was written before it began is on the disk once it ends; others go on meanwhile. */
static int synced(int call, int file) {
    char path[PATH_MAX];
    if (!watched(file, path))
        return syscall(call, file);
    pthread_mutex_lock(&lock);
    uint64_t number = ++syncs;
    note('S', inode_of(file), number, NULL, 0);
    UNLOCK;
    int done = syscall(call, file);
    if (!done) {
        pthread_mutex_lock(&lock);
        note('E', inode_of(file), number, NULL, 0);
        UNLOCK;
    }
    return done;
}
int fsync(int file) { return synced(SYS_fsync, file); }
int fdatasync(int file) { return synced(SYS_fdatasync, file); }

static int named(char kind, int base, const char *name, int call_result, uint64_t inode) {
    char room[ROOM];
    if (!call_result) {
        const char *path = whole(base, name, room);
        if (within(path))
            note_text(kind, inode, path);
    }
    return call_result;
}

static void note_pair(char kind, int from, const char *old, int to, const char *new) {
    char first[ROOM], second[ROOM];
    const char *one = whole(from, old, first), *other = whole(to, new, second);
    if (!within(one) && !within(other))
        return;
    struct iovec data[] = {{(void *)one, strlen(one) + 1}, {(void *)other, strlen(other)}};
    note(kind, 0, 0, data, 2);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    LOCKED((int)syscall(SYS_renameat2, from, old, to, new, flags));
    if (!done)
        note_pair('R', from, old, to, new);
    UNLOCK;
    return done;
}
int renameat(int from, const char *old, int to, const char *new) {
    return renameat2(from, old, to, new, 0);
}
int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }

int linkat(int from, const char *old, int to, const char *new, int flags) {
    LOCKED((int)syscall(SYS_linkat, from, old, to, new, flags));
    if (!done)
        note_pair('L', from, old, to, new);
    UNLOCK;
    return done;
}
int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }

int unlinkat(int base, const char *path, int flags) {
    LOCKED(named('U', base, path, (int)syscall(SYS_unlinkat, base, path, flags), 0));
    UNLOCK;
    return done;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int base, const char *path, mode_t mode) {
    struct stat made;
    LOCKED((int)syscall(SYS_mkdirat, base, path, mode));
    if (!done && !fstatat(base, path, &made, 0))
        named('M', base, path, 0, made.st_ino);
    UNLOCK;
    return done;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* The time when a file was changed is a part of what it says, where somebody sets it. */
int futimens(int file, const struct timespec times[2]) {
    char path[PATH_MAX];
    struct stat found;
    LOCKED((int)syscall(SYS_utimensat, file, NULL, times, 0));
    if (!done && watched(file, path) && !fstat(file, &found))
        note('I', found.st_ino, found.st_mtim.tv_sec * 1000000000ull + found.st_mtim.tv_nsec, NULL, 0);
    UNLOCK;
    return done;
}
