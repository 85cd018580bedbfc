/*
 * launch: prepare a process, then become a backend's command.
 *
 *   launch TAG PARENT DIRECTORY -- PROGRAM [ARG ...]
 *
 * This is the preferred way to start a backend (exec_chain.py, `Compiled`).
 * setup.py compiles it at installation where there is a C compiler, static
 * where the C library allows it, so that no dynamic linker runs before it.
 * It takes the place of the four programs of util-linux, or of a Python
 * interpreter, which all take longer to start.  In this order it
 *
 *   1. begins a session of its own (setsid), so that the process group and
 *      the session id lead to what the backend starts;
 *   2. sets TAG as two resource limits that Linux does not enforce, which
 *      every descendant inherits (see procfs.py); 0 means no tag;
 *   3. asks the kernel to kill it when its parent dies (PR_SET_PDEATHSIG),
 *      and then checks that PARENT is still its parent, since the bridge may
 *      have died before the request;
 *   4. changes to DIRECTORY, unless that is `-`;
 *   5. closes all descriptors but 0, 1 and 2, so that the bridge need not ask
 *      the system about each of its thousands before every spawn;
 *   6. executes PROGRAM, which must be an absolute path.
 *
 * The exit status is 127 if there is no such program, 126 if it cannot be
 * executed, and 125 if an earlier step failed, as with env(1).  Linux only.
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
