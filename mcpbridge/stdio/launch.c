/*
 * launch: prepare a process, then become a backend's command.
 *
 *   launch TAG PARENT DIRECTORY DESCRIPTORS [STEP ...] -- PROGRAM [ARG ...]
 *
 * This is the preferred way to start a backend (exec_chain.py, `Compiled`).
 * setup.py compiles it at installation where there is a C compiler: without a
 * C library where it knows the machine's system calls, else static where the
 * C library allows it, so that no dynamic linker runs before it.  It takes the
 * place of the four programs of util-linux, or of a Python interpreter, which all
 * take longer to start.  In this order it
 *
 *   1. begins a session of its own (setsid), so that the process group and
 *      the session id lead to what the backend starts;
 *   2. sets TAG as two resource limits that Linux does not enforce, which
 *      every descendant inherits (see procfs.py); 0 means no tag;
 *   3. closes all descriptors but 0, 1 and 2, so that the bridge need not ask
 *      the system about each of its thousands before every spawn;
 *   4. sets the soft limit on descriptors to DESCRIPTORS, unless that is 0;
 *   5. takes the steps that confine the program, in their order;
 *   6. drops the ambient capabilities, which a bridge of another user than
 *      root may have so that it can confine some servers: with them every
 *      other server would be root in effect;
 *   7. changes to DIRECTORY, unless that is `-`, as the new user;
 *   8. asks the kernel to kill it when its parent dies (PR_SET_PDEATHSIG),
 *      which a change of credentials would undo, and then checks that PARENT
 *      is still its parent, since the bridge may have died before the request;
 *   9. executes PROGRAM, which must be an absolute path.
 *
 * A STEP is a letter and decimal numbers (exec_chain.py, `Confinement`):
 *
 *   l RESOURCE : SOFT : HARD   sets a resource limit;
 *   n NUMBER                   sets the nice value, NUMBER - 20;
 *   m NUMBER                   sets the umask;
 *   g ID                       drops all supplementary groups, and sets the
 *                              real, effective and saved group;
 *   u ID                       does so with the user, who also gets the pipes
 *                              that are stdin, stdout and stderr.
 *
 * The exit status is 127 if there is no such program, 126 if it cannot be
 * executed, and 125 if an earlier step failed, as with env(1).  Linux only.
 */
#ifdef WITHOUT_LIBC

/*
 * A static C library takes longer to start than all that this program does,
 * above all on a virtual machine: it asks the processor about its caches with
 * an instruction that the hypervisor must emulate, dozens of times.
 */
#include <asm/stat.h>
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/prctl.h>
#include <linux/resource.h>
#include <linux/stat.h>

#define NULL ((void *)0)
#define SIGKILL 9
#define PRIO_PROCESS 0
#ifndef __NR_close_range /* new in Linux 5.9, with one number on all machines */
#define __NR_close_range 436
#endif

static int errno;

#if defined(__x86_64__) && defined(__LP64__)
__asm__(".globl _start\n"
        "_start:\n"
        "    xor %ebp, %ebp\n"
        "    mov %rsp, %rdi\n"
        "    and $-16, %rsp\n"
        "    call begin\n");

static long raw_call(long number, long a, long b, long c, long d, long e)
{
    long result;
    register long fourth __asm__("r10") = d;
    register long fifth __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__) && defined(__LP64__)
__asm__(".globl _start\n"
        "_start:\n"
        "    mov x29, #0\n"
        "    mov x30, #0\n"
        "    mov x0, sp\n"
        "    bl begin\n");

static long raw_call(long number, long a, long b, long c, long d, long e)
{
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x8 __asm__("x8") = number;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x8)
                     : "memory");
    return x0;
}
#else
#error "this machine's system calls are not known here"
#endif

static long call(long number, long a, long b, long c, long d)
{
    long result = raw_call(number, a, b, c, d, 0);
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

#define setsid() call(__NR_setsid, 0, 0, 0, 0)
#define getppid() call(__NR_getppid, 0, 0, 0, 0)
#define chdir(path) call(__NR_chdir, (long)(path), 0, 0, 0)
#define setpriority(which, who, value) call(__NR_setpriority, (which), (who), (value), 0)
#define umask(mask) call(__NR_umask, (long)(mask), 0, 0, 0)
#define setgroups(count, ids) call(__NR_setgroups, (count), (long)(ids), 0, 0)
#define setresgid(real, effective, saved) \
    call(__NR_setresgid, (long)(real), (long)(effective), (long)(saved), 0)
#define setresuid(real, effective, saved) \
    call(__NR_setresuid, (long)(real), (long)(effective), (long)(saved), 0)
#define fstat(descriptor, found) call(__NR_fstat, (descriptor), (long)(found), 0, 0)
#define fchown(descriptor, user, group) \
    call(__NR_fchown, (descriptor), (long)(user), (long)(group), 0)
#define fchmod(descriptor, mode) call(__NR_fchmod, (descriptor), (mode), 0, 0)
#define close(descriptor) call(__NR_close, (descriptor), 0, 0, 0)
#define write(descriptor, text, size) call(__NR_write, (descriptor), (long)(text), (size), 0)
#define prctl(option, a, b, c, d) call(__NR_prctl, (option), (long)(a), (b), (c))
#define execve(path, line, environment) \
    call(__NR_execve, (long)(path), (long)(line), (long)(environment), 0)
#define close_range(first, last) call(__NR_close_range, (first), (last), 0, 0)
#define prlimit(pid, which, new, old) \
    call(__NR_prlimit64, (pid), (which), (long)(new), (long)(old))
typedef struct rlimit64 limit_pair;
typedef unsigned id_number;

/* Those that a program, a directory or a step is likely to cause. */
static const char *strerror(int number)
{
    switch (number) {
    case EPERM:
        return "Operation not permitted";
    case ENOENT:
        return "No such file or directory";
    case E2BIG:
        return "Argument list too long";
    case ENOEXEC:
        return "Exec format error";
    case ENOMEM:
        return "Cannot allocate memory";
    case EACCES:
        return "Permission denied";
    case EINVAL:
        return "Invalid argument";
    case EAGAIN:
        return "Resource temporarily unavailable";
    case ENOTDIR:
        return "Not a directory";
    case ETXTBSY:
        return "Text file busy";
    }
    return "the system call failed";
}

#else

#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct rlimit limit_pair;
typedef uid_t id_number;

static long close_range_or_fail(unsigned first, unsigned last)
{
#ifdef SYS_close_range
    return syscall(SYS_close_range, first, last, 0U);
#else
    (void)first, (void)last;
    return -1;
#endif
}
#define close_range(first, last) close_range_or_fail((first), (last))

#endif

#ifndef PR_CAP_AMBIENT /* new in Linux 4.3 */
#define PR_CAP_AMBIENT 47
#define PR_CAP_AMBIENT_CLEAR_ALL 4
#endif

static void say(const char *text)
{
    long size = 0;
    while (text[size] != 0)
        size++;
    if (write(2, text, size) < 0)
        return;
}

static int fail(const char *what, int status)
{
    const char *why = strerror(errno);
    say(what);
    say(": ");
    say(why);
    say("\n");
    return status;
}

static unsigned long long number(const char *text)
{
    unsigned long long value = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        value = value * 10 + (unsigned)(*text - '0');
    return value;
}

static int set_limit(const char *text)
{
    unsigned long long numbers[3] = {0, 0, 0};
    for (int which = 0; which < 3; which++) {
        numbers[which] = number(text);
        while (*text != 0 && *text != ':')
            text++;
        if (*text == ':')
            text++;
    }
    limit_pair limit = {numbers[1], numbers[2]};
    if (prlimit(0, numbers[0], &limit, NULL) < 0)
        return fail("prlimit", 125);
    return 0;
}

static int set_group(id_number group)
{
    if (setgroups(0, NULL) < 0)
        return fail("setgroups", 125);
    if (setresgid(group, group, group) < 0)
        return fail("setresgid", 125);
    return 0;
}

/*
 * Let the new user open stdin, stdout and stderr by name, as in a shell's
 * `>/dev/stderr`.  These pipes are the process's own; /dev/null is not.
 * Without CAP_CHOWN their mode will do: nobody else reaches them.
 */
static void give_pipes(id_number user)
{
    struct stat found;
    for (int descriptor = 0; descriptor <= 2; descriptor++)
        if (fstat(descriptor, &found) == 0 && S_ISFIFO(found.st_mode))
            if (fchown(descriptor, user, (id_number)-1) < 0 && fchmod(descriptor, 0666) < 0)
                continue; /* It works without, for most programs. */
}

static int set_user(id_number user)
{
    give_pipes(user);
    return setresuid(user, user, user) < 0 ? fail("setresuid", 125) : 0;
}

/* Take one step of the confinement; return 0, or the exit status. */
static int confine(const char *step)
{
    unsigned long long value = number(step + 1);
    switch (step[0]) {
    case 'l':
        return set_limit(step + 1);
    case 'n':
        return setpriority(PRIO_PROCESS, 0, (int)value - 20) < 0 ? fail("setpriority", 125) : 0;
    case 'm':
        umask((unsigned)value);
        return 0;
    case 'g':
        return set_group((id_number)value);
    case 'u':
        return set_user((id_number)value);
    }
    say("launch: unknown step\n");
    return 125;
}

static void close_descriptors(void)
{
    limit_pair most = {1024, 1024};
    if (close_range(3U, ~0U) == 0)
        return;
    prlimit(0, RLIMIT_NOFILE, NULL, &most);
    for (unsigned long descriptor = 3; descriptor < most.rlim_cur; descriptor++)
        close((int)descriptor);
}

static int usage(void)
{
    say("usage: launch TAG PARENT DIRECTORY DESCRIPTORS [STEP ...] -- PROGRAM [ARG ...]\n");
    return 125;
}

static int is_end(const char *text)
{
    return text[0] == '-' && text[1] == '-' && text[2] == 0;
}

static int launch(long count, char **argument, char **environment)
{
    long steps = 5;
    while (steps < count && !is_end(argument[steps]))
        steps++;
    if (steps + 1 >= count)
        return usage();
    char **program = argument + steps + 1;
    limit_pair tag = {number(argument[1]), number(argument[1])};
    if (setsid() < 0)
        return fail("setsid", 125);
    if (tag.rlim_cur != 0)
        if (prlimit(0, RLIMIT_RSS, &tag, NULL) < 0 || prlimit(0, RLIMIT_LOCKS, &tag, NULL) < 0)
            return fail("prlimit", 125);
    /* The whole table of descriptors is closed before a limit on it is lowered. */
    close_descriptors();
    limit_pair descriptors;
    if (number(argument[4]) != 0) {
        if (prlimit(0, RLIMIT_NOFILE, NULL, &descriptors) < 0)
            return fail("prlimit", 125);
        descriptors.rlim_cur = number(argument[4]);
        if (prlimit(0, RLIMIT_NOFILE, &descriptors, NULL) < 0)
            return fail("prlimit", 125);
    }
    for (long step = 5; step < steps; step++) {
        int status = confine(argument[step]);
        if (status != 0)
            return status;
    }
    /* A kernel that is too old to know them has none. */
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 && errno != EINVAL)
        return fail("prctl", 125);
    if ((argument[3][0] != '-' || argument[3][1] != 0) && chdir(argument[3]) < 0)
        return fail(argument[3], 125);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
        return fail("prctl", 125);
    if ((unsigned long long)getppid() != number(argument[2]))
        return 125;
    execve(program[0], program, environment);
    return fail(program[0], errno == ENOENT ? 127 : 126);
}

#ifdef WITHOUT_LIBC

/* The stack at the start: the number of arguments, these, NULL, the environment (System V ABI). */
__attribute__((noreturn, used)) void begin(long *stack)
{
    char **argument = (char **)(stack + 1);
    int status = launch(*stack, argument, argument + *stack + 1);
    for (;;)
        call(__NR_exit_group, status, 0, 0, 0);
}

#else

int main(int count, char **argument, char **environment)
{
    return launch(count, argument, environment);
}

#endif
