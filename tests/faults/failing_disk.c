/* Lets one call fail that writes below a folder: the n-th after fault_arm. Loaded in front of the C library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char prefix[PATH_MAX];
static atomic_long left;
static atomic_long seen;
static int error_number;

void fault_arm(const char *folder, long n, int number) {
  strncpy(prefix, folder, sizeof prefix - 1);
  error_number = number;
  seen = 0;
  left = n;
}

long fault_seen(void) { return seen; }

static int hit(const char *path) {
  if (!prefix[0] || !path || strncmp(path, prefix, strlen(prefix))) return 0;
  seen++;
  return atomic_fetch_sub(&left, 1) == 1;
}

static int hit_fd(int fd) {
  char link[64], path[PATH_MAX];
  if (!prefix[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return hit(path);
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL(condition) if (condition) { errno = error_number; return -1; }
#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
    FAIL((flags & (O_WRONLY | O_RDWR | O_CREAT)) && hit(path)) REAL(name); return real(path, flags, mode); }
#define OPENAT(name) \
  int name(int at, const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
    FAIL((flags & (O_WRONLY | O_RDWR | O_CREAT)) && hit(path)) REAL(name); return real(at, path, flags, mode); }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
ssize_t write(int fd, const void *b, size_t n) { FAIL(hit_fd(fd)) REAL(write); return real(fd, b, n); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { FAIL(hit_fd(fd)) REAL(pwrite); return real(fd, b, n, o); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { FAIL(hit_fd(fd)) REAL(pwrite64); return real(fd, b, n, o); }
ssize_t writev(int fd, const struct iovec *v, int n) { FAIL(hit_fd(fd)) REAL(writev); return real(fd, v, n); }
int fsync(int fd) { FAIL(hit_fd(fd)) REAL(fsync); return real(fd); }
int fdatasync(int fd) { FAIL(hit_fd(fd)) REAL(fdatasync); return real(fd); }
int mkdir(const char *path, mode_t mode) { FAIL(hit(path)) REAL(mkdir); return real(path, mode); }
int rename(const char *a, const char *b) { FAIL(hit(a)) REAL(rename); return real(a, b); }
