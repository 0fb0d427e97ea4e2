/* A stand-in for libnvidia-ml.so.1: the part of NVML that energy meters call, over simulated GPUs. What is set through
   it is in settings.c, which is compiled behind this file.

   Its state is the file "state" in the folder of this library, written by negawatt.testing.SimulatedNvml and mapped
   here, so that a test steers it while it is in use. The structs below and there are the same, field by field.
   Names, signatures and numbers are those of NVML's API reference (docs.nvidia.com/deploy/nvml-api). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define GPUS 8
#define SLICES 8
#define PIDS 16
#define POINTS 65536
#define CHANGES 4096
#define CLOCKS 256
#define MEMORY_CLOCKS 8
#define PROFILES 32

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, LOST = 15 };
enum { FIELD_ENERGY = 83, FIELD_AVERAGE = 185, FIELD_INSTANT = 186 };

typedef struct {
    char uuid[96];
    uint32_t gpu_slices, compute_slices;
} Slice;

/* A power limit from a time on, and the joules drawn until then. */
typedef struct {
    double time_s, joules_j, limit_w, effective_w;
} Change;

typedef struct {
    char uuid[96], name[96];
    /* what these calls answer: 0 or an NVML error */
    int32_t handle_error, energy_error, power_error, instant_error, device_error, limit_error;
    uint32_t limit_ignored, persistence;
    uint32_t architecture, max_slices, slices, pids, clocks, memory_clocks, profiles;
    uint32_t pid[PIDS], clock_mhz[CLOCKS], memory_clock_mhz[MEMORY_CLOCKS], profile[PROFILES];
    double counter_refresh_s, counter_scale, counter_offset_j, frozen_s, power_frozen_s;
    double power_refresh_s, power_window_s, power_scale, noise_fraction;
    double average_window_s;  /* of nvmlDeviceGetPowerUsage; 0: it gives instant power */
    double phase_s;           /* of all refreshes */
    double counter_window_s;  /* part of each refresh that the counter sees; 0: all of it */
    double lowest_w, highest_w, default_w, elsewhere_w;  /* limits; the last one is set past NVML */
    double peak_w;                                       /* of the load */
    /* what is set, by any process: lowest and highest clock, 0 if not locked; bits of profiles */
    uint32_t locked_mhz[2], memory_locked_mhz[2], requested[8];
    uint64_t changes;  /* of the power limit, ever; the last CHANGES of them are kept, in a ring */
    Change change[CHANGES];
    uint64_t points;
    Slice slice[SLICES];
    double time_s[POINTS], power_w[POINTS], joules_j[POINTS];
} Gpu;

typedef struct {
    double now_s;     /* simulated time; negative: real time */
    double origin_s;  /* CLOCK_MONOTONIC when real time is 0 */
    int32_t init_error;
    uint32_t gpus;
    Gpu gpu[GPUS];
} State;

typedef struct { uint32_t gpu, slice; } Handle;  /* slice 0: the GPU itself */
typedef Handle *Device;

typedef struct {
    uint32_t field, scope;
    int64_t timestamp_us, latency_us;
    uint32_t type;
    int32_t result;
    union { double d; uint32_t u; uint64_t ull; } value;
} Field;

typedef struct {
    uint32_t multiprocessors, copy, decoders, encoders, jpeg, ofa, gpu_slices, compute_slices;
    uint64_t memory_mb;
} Attributes;

typedef struct { uint32_t pid; uint64_t memory; uint32_t gpu_instance, compute_instance; } Process;

static State *state;
static char state_path[4096];
static Handle handles[GPUS][SLICES + 1];
static struct { uint64_t steps; double joules_j; } seen[GPUS];  /* of part-time counters, summed so far */

/* ---- the simulated hardware ---- */

static double now_s(void) {
    struct timespec t;
    if (state->now_s >= 0) return state->now_s;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9 - state->origin_s;
}

/* The number of points of the load at or before a time. */
static uint64_t points_to(const Gpu *g, double t) {
    uint64_t low = 0, high = g->points;
    while (low < high) {
        uint64_t mid = (low + high) / 2;
        if (g->time_s[mid] <= t) low = mid + 1; else high = mid;
    }
    return low;
}

/* What the load asks for: watts at a time, at a step those behind it; joules from its first point. */
static double load_w(const Gpu *g, double t) {
    uint64_t low = points_to(g, t);
    if (low == 0) return g->power_w[0];
    if (low == g->points) return g->power_w[low - 1];
    double slope = (g->power_w[low] - g->power_w[low - 1]) / (g->time_s[low] - g->time_s[low - 1]);
    return g->power_w[low - 1] + slope * (t - g->time_s[low - 1]);
}

static double load_j(const Gpu *g, double t) {
    uint64_t low = points_to(g, t);
    if (low == 0) return g->power_w[0] * (t - g->time_s[0]);
    return g->joules_j[low - 1] + (g->power_w[low - 1] + load_w(g, t)) / 2 * (t - g->time_s[low - 1]);
}

/* Joules of a straight piece of the load under a limit. */
static double piece_j(double begin_w, double end_w, double span_s, double limit_w) {
    double low = fmin(begin_w, end_w), high = fmax(begin_w, end_w);
    if (high <= limit_w) return (low + high) / 2 * span_s;
    if (low >= limit_w) return limit_w * span_s;
    double below = (limit_w - low) / (high - low);
    return span_s * (below * (low + limit_w) / 2 + (1 - below) * limit_w);
}

/* Joules between two times under a limit. */
static double limited_j(const Gpu *g, double begin_s, double end_s, double limit_w) {
    if (limit_w >= g->peak_w) return load_j(g, end_s) - load_j(g, begin_s);
    if (end_s < begin_s) return -limited_j(g, end_s, begin_s, limit_w);
    double at_s = begin_s, at_w = load_w(g, begin_s), sum_j = 0;
    uint64_t i = points_to(g, begin_s);
    for (; i < g->points && g->time_s[i] <= end_s; at_s = g->time_s[i], at_w = g->power_w[i], i++)
        sum_j += piece_j(at_w, g->power_w[i], g->time_s[i] - at_s, limit_w);
    double end_w = i < g->points && i > 0 ? at_w + (g->power_w[i] - at_w) * (end_s - at_s) / (g->time_s[i] - at_s) : at_w;
    return sum_j + piece_j(at_w, end_w, end_s - at_s, limit_w);
}

/* The limit that holds at a time. */
static Change change_at(const Gpu *g, double t) {
    uint64_t changes = __atomic_load_n(&g->changes, __ATOMIC_ACQUIRE);
    uint64_t oldest = changes > CHANGES - 1 ? changes - (CHANGES - 1) : 0;  /* one place is being written to */
    if (!changes) return (Change){.effective_w = INFINITY};
    uint64_t i = changes - 1;
    while (i > oldest && g->change[i % CHANGES].time_s > t) i--;
    return g->change[i % CHANGES];
}

/* Joules drawn up to a time: a GPU draws what its load asks for, at most its limit. */
static double joules_to(const Gpu *g, double t) {
    Change change = change_at(g, t);
    return change.joules_j + limited_j(g, change.time_s, t, change.effective_w);
}

static double refreshed_s(const Gpu *g, double t, double refresh_s) {
    /* the nudge keeps 3 * 0.1 s a multiple of 0.1 s */
    return refresh_s > 0 ? floor((t - g->phase_s) / refresh_s + 1e-9) * refresh_s + g->phase_s : t;
}

static double mean_w(const Gpu *g, double t, double window_s) {
    return (joules_to(g, t) - joules_to(g, t - window_s)) / window_s;
}

static double counter_j(const Gpu *g) {
    double t = refreshed_s(g, fmin(now_s(), g->frozen_s), g->counter_refresh_s), joules_j;
    if (g->counter_window_s <= 0) {
        joules_j = joules_to(g, t);
    } else {
        uint64_t n = (uint64_t)(g - state->gpu), steps = (uint64_t)fmax(0, round((t - g->phase_s) / g->counter_refresh_s));
        if (steps < seen[n].steps) seen[n].steps = 0, seen[n].joules_j = 0;
        while (seen[n].steps < steps) {
            double at = g->phase_s + (double)++seen[n].steps * g->counter_refresh_s;
            seen[n].joules_j += mean_w(g, at, g->counter_window_s) * g->counter_refresh_s;
        }
        joules_j = seen[n].joules_j;
    }
    return fmax(0, joules_j * g->counter_scale + g->counter_offset_j);
}

static double power_w(const Gpu *g, double window_s) {
    double t = refreshed_s(g, fmin(now_s(), g->power_frozen_s), g->power_refresh_s);
    double width = window_s > 0 ? window_s : 1e-6;
    /* A sensor flickers: a number between -1 and 1 from the time of the refresh (finaliser of MurmurHash3). */
    uint32_t hash = (uint32_t)llround(t * 1e4);
    hash = (hash ^ (hash >> 16)) * 0x85ebca6bu;
    hash = (hash ^ (hash >> 13)) * 0xc2b2ae35u;
    hash ^= hash >> 16;
    double flicker = ((double)(hash >> 8) / 8388608.0 - 1.0) * g->noise_fraction;
    return mean_w(g, t, width) * g->power_scale * (1.0 + flicker);
}

static int gpu_of(Device d, Gpu **g) {
    if (!state) return UNINITIALIZED;
    if (!d || d->gpu >= state->gpus) return INVALID;
    *g = &state->gpu[d->gpu];
    return (*g)->device_error;
}

/* ---- NVML's functions ---- */

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    Dl_info self;
    if (state) {  /* mapped for good: other threads may be reading it */
        memset(seen, 0, sizeof seen);
        return state->init_error;
    }
    if (!dladdr((void *)nvmlInitWithFlags, &self)) return 999;
    snprintf(state_path, sizeof state_path, "%s", self.dli_fname);
    char *slash = strrchr(state_path, '/');
    if (!slash) return 999;
    snprintf(slash + 1, sizeof state_path - (size_t)(slash + 1 - state_path), "state");
    int file = open(state_path, O_RDWR | O_CLOEXEC);
    if (file < 0) return 9;  /* driver not loaded */
    void *mapped = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) return 999;
    memset(seen, 0, sizeof seen);
    for (uint32_t g = 0; g < GPUS; g++)
        for (uint32_t s = 0; s <= SLICES; s++) handles[g][s] = (Handle){g, s};
    state = mapped;
    return state->init_error;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(int result) {
    switch (result) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case 9: return "Driver Not Loaded";
    case 13: return "Function Not Found";
    case LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    if (!state) return UNINITIALIZED;
    *count = state->gpus;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
    if (!state) return UNINITIALIZED;
    if (index >= state->gpus) return INVALID;
    *device = &handles[index][0];
    return state->gpu[index].handle_error;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device *device) {
    if (!state) return UNINITIALIZED;
    for (uint32_t g = 0; g < state->gpus; g++) {
        if (!strcmp(uuid, state->gpu[g].uuid)) return *device = &handles[g][0], state->gpu[g].handle_error;
        for (uint32_t s = 0; s < state->gpu[g].slices; s++)
            if (!strcmp(uuid, state->gpu[g].slice[s].uuid)) return *device = &handles[g][s + 1], OK;
    }
    return NOT_FOUND;
}

static int put(char *to, unsigned length, const char *text) {
    if (strlen(text) >= length) return INSUFFICIENT_SIZE;
    strcpy(to, text);
    return OK;
}

int nvmlDeviceGetUUID(Device d, char *uuid, unsigned length) {
    Gpu *g;
    int error = gpu_of(d, &g);
    return error ? error : put(uuid, length, d->slice ? g->slice[d->slice - 1].uuid : g->uuid);
}

int nvmlDeviceGetName(Device d, char *name, unsigned length) {
    Gpu *g;
    int error = gpu_of(d, &g);
    return error ? error : put(name, length, g->name);
}

int nvmlDeviceGetArchitecture(Device d, unsigned *architecture) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (!error) *architecture = g->architecture;
    return error;
}

int nvmlDeviceGetTotalEnergyConsumption(Device d, unsigned long long *energy_mj) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (error || (error = g->energy_error)) return error;
    *energy_mj = (unsigned long long)(counter_j(g) * 1e3);
    return OK;
}

int nvmlDeviceGetPowerUsage(Device d, unsigned *power_mw) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (error || (error = g->power_error)) return error;
    *power_mw = (unsigned)llround(power_w(g, g->average_window_s > 0 ? g->average_window_s : g->power_window_s) * 1e3);
    return OK;
}

int nvmlDeviceGetFieldValues(Device d, int count, Field *fields) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (error) return error;
    for (int i = 0; i < count; i++) {
        fields[i].type = 1;  /* unsigned int */
        fields[i].result = g->instant_error ? g->instant_error : g->power_error;
        if (fields[i].field == FIELD_INSTANT)
            fields[i].value.u = (uint32_t)llround(power_w(g, g->power_window_s) * 1e3);
        else if (fields[i].field == FIELD_AVERAGE)
            fields[i].value.u = (uint32_t)llround(power_w(g, 1.0) * 1e3);
        else if (fields[i].field == FIELD_ENERGY)
            fields[i].result = g->energy_error, fields[i].value.ull = (uint64_t)(counter_j(g) * 1e3);
        else
            fields[i].result = NOT_SUPPORTED;
    }
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device d, unsigned *count, Process *processes) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (error) return error;
    unsigned room = *count;
    *count = g->pids;
    if (!g->pids) return OK;
    if (room < g->pids || !processes) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < g->pids; i++) processes[i] = (Process){g->pid[i], 1u << 30, ~0u, ~0u};
    return OK;
}

int nvmlDeviceGetMigMode(Device d, unsigned *current, unsigned *pending) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (error) return error;
    if (!g->max_slices) return NOT_SUPPORTED;
    *current = *pending = g->slices > 0;
    return OK;
}

int nvmlDeviceGetMaxMigDeviceCount(Device d, unsigned *count) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (!error) *count = g->max_slices;
    return error;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device d, unsigned index, Device *slice) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (error) return error;
    if (index >= g->slices) return NOT_FOUND;
    *slice = &handles[d->gpu][index + 1];
    return OK;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device slice, Device *device) {
    if (!state) return UNINITIALIZED;
    if (!slice || !slice->slice) return INVALID;
    *device = &handles[slice->gpu][0];
    return OK;
}

int nvmlDeviceIsMigDeviceHandle(Device d, unsigned *slice) {
    if (!state) return UNINITIALIZED;
    if (!d) return INVALID;
    *slice = d->slice > 0;
    return OK;
}

int nvmlDeviceGetAttributes_v2(Device d, Attributes *attributes) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (error) return error;
    if (!d->slice) return NOT_SUPPORTED;
    *attributes = (Attributes){.gpu_slices = g->slice[d->slice - 1].gpu_slices,
                               .compute_slices = g->slice[d->slice - 1].compute_slices};
    return OK;
}
