/* Does nothing: the program of the sandbox ("pause") and of an idle engine slot. As process 1 of its container it ends at once on SIGTERM, which
   without a handler the kernel would not deliver to it, and reaps what is handed to it. Linked statically, its image needs no other file. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void stop(int signal_number) {
    (void)signal_number;
    _exit(0);
}

static void reap(int signal_number) {
    (void)signal_number;
    while (waitpid(-1, 0, WNOHANG) > 0) {
    }
}

int main(void) {
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    signal(SIGCHLD, reap);
    for (;;) {
        pause();
    }
}
