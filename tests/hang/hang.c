/* Loaded with a program (LD_PRELOAD): while the file TAILOR_TEST_HANG exists, the engine's device thread stands still, wherever
   it is, and every other thread goes on. */
#define _GNU_SOURCE
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *hang;

static void stand_still(int signal) {
    (void)signal;
    while (access(hang, F_OK) == 0) usleep(5000);
}

/* The id of the thread of that name; 0 where there is none. */
static pid_t find(const char *name) {
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks) return 0;
    pid_t found = 0;
    struct dirent *task;
    while (!found && (task = readdir(tasks))) {
        char path[64], comm[32] = {0};
        if (snprintf(path, sizeof path, "/proc/self/task/%.20s/comm", task->d_name) >= (int)sizeof path) continue;
        FILE *file = fopen(path, "r");
        if (!file) continue;
        if (fgets(comm, sizeof comm, file) && strncmp(comm, name, strlen(name)) == 0) found = atoi(task->d_name);
        fclose(file);
    }
    closedir(tasks);
    return found;
}

static void *watch(void *nothing) {
    (void)nothing;
    for (;; usleep(5000)) {
        if (access(hang, F_OK) != 0) continue;
        pid_t thread = find("tailor-engine");
        if (thread) syscall(SYS_tgkill, getpid(), thread, SIGUSR2);
        while (access(hang, F_OK) == 0) usleep(5000);
    }
    return NULL;
}

__attribute__((constructor)) static void begin(void) {
    hang = getenv("TAILOR_TEST_HANG");
    if (!hang) return;
    struct sigaction action = {.sa_handler = stand_still, .sa_flags = SA_RESTART};
    sigaction(SIGUSR2, &action, NULL);
    pthread_t thread;
    pthread_create(&thread, NULL, watch, NULL);
}
