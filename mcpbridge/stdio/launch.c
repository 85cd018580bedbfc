/*
 * Prepares a process and becomes its command: the exec chain in one link.
 *
 *   launch TAG PARENT DIRECTORY -- PROGRAM [ARG ...]
 *
 * A session of its own (setsid), a tag (two limits, see procfs.py; 0: none),
 * death with its parent (PR_SET_PDEATHSIG; PARENT is the pid that it must
 * still have, since the parent may have died before), a directory (`-`: the
 * present one), and no descriptor but 0, 1 and 2.  Linux only.
 *
 * Exit status as a shell's: 126 the program cannot be run, 127 it is not
 * there; 125 something before it failed.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fail(const char *what, int status)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    return status;
}

static void close_descriptors(void)
{
#ifdef SYS_close_range
    if (syscall(SYS_close_range, 3U, ~0U, 0U) == 0)
        return;
#endif
    long most = sysconf(_SC_OPEN_MAX);
    for (long descriptor = 3; descriptor < most; descriptor++)
        close((int)descriptor);
}

int main(int count, char **argument)
{
    if (count < 6 || strcmp(argument[4], "--") != 0) {
        fputs("usage: launch TAG PARENT DIRECTORY -- PROGRAM [ARG ...]\n", stderr);
        return 125;
    }
    rlim_t tag = strtoull(argument[1], NULL, 10);
    if (setsid() < 0)
        return fail("setsid", 125);
    if (tag != 0) {
        struct rlimit limit = {tag, tag};
        if (setrlimit(RLIMIT_RSS, &limit) < 0 || setrlimit(RLIMIT_LOCKS, &limit) < 0)
            return fail("setrlimit", 125);
    }
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
        return fail("prctl", 125);
    if (getppid() != (pid_t)atol(argument[2]))
        return 125;
    if (strcmp(argument[3], "-") != 0 && chdir(argument[3]) < 0)
        return fail(argument[3], 125);
    close_descriptors();
    execv(argument[5], argument + 5);
    return fail(argument[5], errno == ENOENT ? 127 : 126);
}
