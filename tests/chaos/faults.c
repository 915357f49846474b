/* A library to preload: counts the file operations that a program does under one folder, writes them down, and at the
   one that it is told kills the program, makes the operation fail, or lets half of a write happen first.

   It stands in front of the C library, so it meets whatever a program is written in; only memory maps go past it, and
   what the C library does within itself (stdio). Its orders stand in a file, the board, that is mapped by every process
   of the program and by the harness. See faults.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { CREATE, WRITE, SYNC, RENAME, UNLINK, RMDIR, MKDIR, TRUNCATE, LINK, REOPEN };
static const char *const NAMES[] = {"create", "write", "sync", "rename", "unlink", "rmdir", "mkdir", "truncate", "link", "reopen"};
enum action { NOTHING, KILL, FAIL, HALF };

struct board { /* the same in faults.py */
    long count, inside, at, action, error, for_good, kinds, pause_us, step, began;
    char folder[1024], only[256], log[1024];
};
static struct board *board;
static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER;

/* Where orders are from now on; a program that is not forked by the harness finds them by CHAOS_BOARD. */
int chaos_board(const char *path) {
    int file = syscall(SYS_openat, AT_FDCWD, path, O_RDWR);
    if (file < 0) return -1;
    void *place = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    board = place == MAP_FAILED ? NULL : place;
    return board ? 0 : -1;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CHAOS_BOARD");
    if (path) chaos_board(path);
}

#define REAL(name) ({ static __typeof__(&name) found; if (!found) found = dlsym(RTLD_NEXT, #name); found; })

static void path_of_file(int file, char *into) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, into, PATH_MAX - 1);
    into[length < 0 ? 0 : length] = 0;
}

static const char *absolute(int folder, const char *path, char *into) {
    if (path[0] == '/') return path;
    if (folder == AT_FDCWD) { if (!getcwd(into, PATH_MAX)) into[0] = 0; }
    else path_of_file(folder, into);
    size_t length = strlen(into);
    snprintf(into + length, PATH_MAX - length, "/%s", path);
    return into;
}

/* Whether one of the words of board->only, split by |, stands in the path; none at all means any path. */
static int wanted(const char *path) {
    char words[sizeof board->only], *rest = words, *word;
    if (!board->only[0]) return 1;
    memcpy(words, board->only, sizeof words);
    while ((word = strsep(&rest, "|"))) if (strstr(path, word)) return 1;
    return 0;
}

static int concerns(const char *path) {
    if (!board || !board->folder[0]) return 0;
    size_t length = strlen(board->folder);
    if (strncmp(path, board->folder, length) || (path[length] && path[length] != '/')) return 0;
    return wanted(path);
}

static void die(void) {
    kill(0, SIGKILL);
    for (;;) pause();
}

/* Before an operation: what is to become of it. NOTHING is also the answer for those that do not concern us. */
static enum action arrive(enum kind kind, int ours) {
    if (!ours || !(board->kinds >> kind & 1)) return NOTHING;
    __atomic_add_fetch(&board->inside, 1, __ATOMIC_SEQ_CST);
    long number = __atomic_add_fetch(&board->count, 1, __ATOMIC_SEQ_CST);
    if (board->pause_us) {
        struct timespec time = {board->pause_us / 1000000, board->pause_us % 1000000 * 1000};
        nanosleep(&time, NULL);
    }
    int here = board->at && (number == board->at || (board->for_good && number > board->at));
    if (!here) return NOTHING;
    if (board->action == KILL || (board->action == HALF && kind != WRITE)) die();
    if (board->action == FAIL) errno = board->error;
    return board->action;
}

static void leave(enum kind kind, int ours) {
    if (ours && board->kinds >> kind & 1) __atomic_sub_fetch(&board->inside, 1, __ATOMIC_SEQ_CST);
}

/* One line of the log, "kind offset length path TAB other", and then the bytes that were written. */
static void note(enum kind kind, const char *path, const char *other, long offset, const void *bytes, long length) {
    if (!board->log[0]) return;
    char line[2 * PATH_MAX + 64];
    int size = snprintf(line, sizeof line, "%s %ld %ld %s\t%s\n", NAMES[kind], offset, length, path, other ? other : "");
    int before = errno;
    pthread_mutex_lock(&writing);
    int file = syscall(SYS_openat, AT_FDCWD, board->log, O_WRONLY | O_APPEND | O_CREAT, 0600);
    struct iovec both[] = {{line, size}, {(void *)bytes, bytes ? length : 0}};
    if (file < 0 || syscall(SYS_writev, file, both, 2) != size + (bytes ? length : 0)) abort();
    syscall(SYS_close, file);
    pthread_mutex_unlock(&writing);
    errno = before;
}

/* An operation on names: met, done unless it is to fail, written down if it was done. */
#define ON_NAMES(kind, ours, call, first, second) ({                     \
        int yes = (ours), answer = -1;                                   \
        if (arrive(kind, yes) != FAIL) answer = (call);                  \
        if (!answer && yes) note(kind, first, second, 0, NULL, 0);       \
        leave(kind, yes);                                                \
        answer; })

#define OPEN(name, real, folder, path, flags) ({                                             \
        char where[PATH_MAX];                                                                \
        const char *full = absolute(folder, path, where);                                    \
        int yes = (flags & (O_CREAT | O_TRUNC)) && (flags & O_TMPFILE) != O_TMPFILE && concerns(full), file = -1;  \
        struct stat before;                                                                  \
        int known = yes && !stat(full, &before);                                             \
        enum kind kind = !known ? CREATE : flags & O_TRUNC ? TRUNCATE : REOPEN;              \
        if (arrive(kind, yes) != FAIL) file = (real);                                        \
        if (file >= 0 && yes) note(kind, full, NULL, 0, NULL, 0);                            \
        leave(kind, yes);                                                                    \
        file; })

#define WITH_MODE(flags) va_list rest; va_start(rest, flags); mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; va_end(rest)

int open(const char *path, int flags, ...) { WITH_MODE(flags); return OPEN(open, REAL(open)(path, flags, mode), AT_FDCWD, path, flags); }
int open64(const char *path, int flags, ...) { WITH_MODE(flags); return OPEN(open64, REAL(open64)(path, flags, mode), AT_FDCWD, path, flags); }
int openat(int folder, const char *path, int flags, ...) { WITH_MODE(flags); return OPEN(openat, REAL(openat)(folder, path, flags, mode), folder, path, flags); }
int openat64(int folder, const char *path, int flags, ...) { WITH_MODE(flags); return OPEN(openat64, REAL(openat64)(folder, path, flags, mode), folder, path, flags); }
int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* Bytes into a file at `offset`, or where it stands (-1); of half a write the rest never comes. */
static ssize_t put(int file, const void *bytes, size_t length, off_t offset) {
    char path[PATH_MAX];
    int yes = 0;
    if (board && board->folder[0]) { path_of_file(file, path); yes = concerns(path); }
    long place = offset;
    if (yes && offset < 0) {
        struct stat known;
        int append = fcntl(file, F_GETFL) & O_APPEND;
        place = append && !fstat(file, &known) ? known.st_size : lseek(file, 0, SEEK_CUR);
    }
    ssize_t done = -1;
    enum action fate = arrive(WRITE, yes);
    if (fate == HALF) length /= 2;
    if (fate != FAIL) done = offset < 0 ? REAL(write)(file, bytes, length) : REAL(pwrite)(file, bytes, length, offset);
    if (fate == HALF) die();
    if (done >= 0 && yes) note(WRITE, path, NULL, place, bytes, done);
    leave(WRITE, yes);
    return done;
}

ssize_t write(int file, const void *bytes, size_t length) { return put(file, bytes, length, -1); }
ssize_t pwrite(int file, const void *bytes, size_t length, off_t offset) { return put(file, bytes, length, offset); }
ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t offset) { return put(file, bytes, length, offset); }
ssize_t writev(int file, const struct iovec *parts, int count) {
    ssize_t total = 0;
    for (int part = 0; part < count; part++) {
        if (!parts[part].iov_len) continue;
        ssize_t done = put(file, parts[part].iov_base, parts[part].iov_len, -1);
        if (done < 0) return total ? total : -1;
        total += done;
        if ((size_t)done < parts[part].iov_len) break;
    }
    return total;
}

/* Copies within the kernel: refused, so that programs fall back to reading and writing, which we see. */
static int copies_here(int file) { char path[PATH_MAX]; path_of_file(file, path); return concerns(path); }
ssize_t sendfile(int out, int in, off_t *offset, size_t count) {
    if (copies_here(out)) { errno = ENOTSOCK; return -1; }
    return REAL(sendfile64)(out, in, offset, count);
}
ssize_t sendfile64(int out, int in, off64_t *offset, size_t count) { return sendfile(out, in, offset, count); }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags) {
    if (copies_here(out)) { errno = EXDEV; return -1; }
    return REAL(copy_file_range)(in, from, out, to, count, flags);
}

#define ON_FILE(kind, call, offset) ({ char path[PATH_MAX]; path[0] = 0; if (board) path_of_file(file, path); \
        int yes = concerns(path), answer = -1;                            \
        if (arrive(kind, yes) != FAIL) answer = (call);                   \
        if (!answer && yes) note(kind, path, NULL, offset, NULL, 0);      \
        leave(kind, yes);                                                 \
        answer; })

int fsync(int file) { return ON_FILE(SYNC, REAL(fsync)(file), 0); }
int fdatasync(int file) { return ON_FILE(SYNC, REAL(fdatasync)(file), 0); }
int ftruncate(int file, off_t length) { return ON_FILE(TRUNCATE, REAL(ftruncate)(file, length), length); }
int ftruncate64(int file, off64_t length) { return ON_FILE(TRUNCATE, REAL(ftruncate64)(file, length), length); }

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    char one[PATH_MAX], two[PATH_MAX];
    const char *before = absolute(from, old, one), *after = absolute(to, new, two);
    return ON_NAMES(RENAME, concerns(before) || concerns(after), REAL(renameat2)(from, old, to, new, flags), before, after);
}
int renameat(int from, const char *old, int to, const char *new) { return renameat2(from, old, to, new, 0); }
int rename(const char *old, const char *new) { return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0); }

int unlinkat(int folder, const char *path, int flags) {
    char where[PATH_MAX];
    const char *full = absolute(folder, path, where);
    enum kind kind = flags & AT_REMOVEDIR ? RMDIR : UNLINK;
    return ON_NAMES(kind, concerns(full), REAL(unlinkat)(folder, path, flags), full, NULL);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int folder, const char *path, mode_t mode) {
    char where[PATH_MAX];
    const char *full = absolute(folder, path, where);
    return ON_NAMES(MKDIR, concerns(full), REAL(mkdirat)(folder, path, mode), full, NULL);
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int linkat(int from, const char *old, int to, const char *new, int flags) {
    char one[PATH_MAX], two[PATH_MAX];
    const char *before = absolute(from, old, one), *after = absolute(to, new, two);
    return ON_NAMES(LINK, concerns(before) || concerns(after), REAL(linkat)(from, old, to, new, flags), before, after);
}
int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }
