/* Makes read, write and sync calls fail on files whose path contains one of the colon-separated words in
   ISTHMUS_FAULT_UNDER, with the errno in the file ISTHMUS_FAULT_ERRNO_FILE, as long as that file exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int failing(int fd) {
    const char *file = getenv("ISTHMUS_FAULT_ERRNO_FILE"), *words = getenv("ISTHMUS_FAULT_UNDER");
    char link[64], path[4096], list[1024], *rest = list, *word;
    FILE *said;
    int number = 0;
    ssize_t length;
    if (file == NULL || words == NULL || access(file, F_OK) != 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    snprintf(list, sizeof list, "%s", words);
    while ((word = strsep(&rest, ":")) != NULL && strstr(path, word) == NULL) {}
    if (word == NULL || (said = fopen(file, "re")) == NULL) return 0;
    if (fscanf(said, "%d", &number) != 1) number = 0;
    fclose(said);
    return number;
}

#define WRAP(type, name, parameters, ...)                                             \
    type name parameters {                                                            \
        static type(*real) parameters;                                                \
        int number = failing(fd);                                                     \
        if (number != 0) {                                                            \
            errno = number;                                                           \
            return -1;                                                                \
        }                                                                             \
        if (real == NULL) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);         \
        return real(__VA_ARGS__);                                                     \
    }

WRAP(ssize_t, pread, (int fd, void *to, size_t length, off_t at), fd, to, length, at)
WRAP(ssize_t, pread64, (int fd, void *to, size_t length, off64_t at), fd, to, length, at)
WRAP(ssize_t, pwrite, (int fd, const void *from, size_t length, off_t at), fd, from, length, at)
WRAP(ssize_t, pwrite64, (int fd, const void *from, size_t length, off64_t at), fd, from, length, at)
WRAP(ssize_t, write, (int fd, const void *from, size_t length), fd, from, length)
WRAP(int, fsync, (int fd), fd)
WRAP(int, fdatasync, (int fd), fd)
WRAP(int, ftruncate, (int fd, off_t length), fd, length)
WRAP(int, ftruncate64, (int fd, off64_t length), fd, length)
