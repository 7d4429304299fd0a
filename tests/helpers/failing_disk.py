"""Simulates a disk that fails with EIO for some bytes of a file, in processes that are started within."""

import contextlib
import shutil
import subprocess

import pytest

# Reads end before the bad bytes, as on a disk. Memory maps are not affected.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* Returns how many bytes may be read at a position, or -1. */
static ssize_t allowed(int fd, long long at, size_t count) {
  const char *file = getenv("EIO_FILE"), *range = getenv("EIO_BYTES");
  char link[64], path[4096];
  long long first, end;
  if (!file || !range || sscanf(range, "%lld-%lld", &first, &end) != 2) return count;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return count;
  path[length] = 0;
  if (strcmp(path, file) || at >= end || at + (long long)count <= first) return count;
  if (at < first) return first - at;
  errno = EIO;
  return -1;
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t read(int fd, void *buffer, size_t count) {
  REAL(read);
  ssize_t most = allowed(fd, lseek(fd, 0, SEEK_CUR), count);
  return most < 0 ? -1 : real(fd, buffer, most);
}

ssize_t pread64(int fd, void *buffer, size_t count, off64_t at) {
  REAL(pread64);
  ssize_t most = allowed(fd, at, count);
  return most < 0 ? -1 : real(fd, buffer, most, at);
}

ssize_t pread(int fd, void *buffer, size_t count, off_t at) { return pread64(fd, buffer, count, at); }

size_t fread(void *buffer, size_t size, size_t items, FILE *stream) {
  REAL(fread);
  ssize_t most = allowed(fileno(stream), ftello(stream), size * items);
  return most < 0 || !size ? 0 : real(buffer, size, most / size, stream);
}
"""


def compiled(folder):
    """Compiles the library that is preloaded. Skips the test if there is no C compiler."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "shim.so", folder / "shim.c", "-ldl"], check=True)
    return folder / "shim.so"


@contextlib.contextmanager
def failing(library, path, first, end):
    """Makes processes that are started within fail to read the bytes from `first` to `end` (exclusive) of a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        patch.setenv("EIO_FILE", str(path.resolve()))
        patch.setenv("EIO_BYTES", f"{first}-{end}")
        yield
