/* What can be set of the simulated GPUs: power limit, locked clocks, workload power profiles. Compiled behind nvml.c.

   Processes that set something take turns by a lock on the state file, which the kernel gives back when one is killed.
   A change of the power limit counts from the moment it is complete: a process killed before that has changed nothing. */

typedef struct { uint32_t bits[8]; } Mask;
typedef struct { uint32_t version, id, priority; Mask conflicting; } ProfileInfo;
typedef struct { uint32_t version; Mask known; ProfileInfo profile[255]; } ProfilesInfo;
typedef struct { uint32_t version; Mask known, requested, enforced; } CurrentProfiles;
typedef struct { uint32_t version; Mask requested; } RequestedProfiles;
typedef struct { uint32_t operation; Mask profiles; } UpdateProfiles;

enum { CLOCK_MEMORY = 2, CLOCK_TYPES = 4, REASON_POWER_CAP = 4 };

/* ---- for SimulatedNvml itself: no permission is asked ---- */

double simulated_joules(unsigned gpu, double time_s) {
    return joules_to(&state->gpu[gpu], time_s) - load_j(&state->gpu[gpu], 0);
}

double simulated_limit_w(unsigned gpu) { return change_at(&state->gpu[gpu], INFINITY).limit_w; }

int simulated_set_limit(unsigned gpu, double limit_w) {
    Gpu *g = &state->gpu[gpu];
    int file = open(state_path, O_RDWR | O_CLOEXEC);
    if (file < 0 || flock(file, LOCK_EX)) return 999;
    Change change = {.limit_w = limit_w, .effective_w = fmin(limit_w, g->elsewhere_w)};
    uint64_t changes = g->changes;
    if (changes) {
        change.time_s = now_s();
        change.joules_j = joules_to(g, change.time_s);
    } else {
        change.joules_j = load_j(g, 0);
    }
    g->change[changes % CHANGES] = change;
    __atomic_store_n(&g->changes, changes + 1, __ATOMIC_RELEASE);
    close(file);
    return OK;
}

/* ---- NVML's functions ---- */

/* The GPU whose settings are to be changed; *done if nothing is left to do. */
static int settable(Device d, Gpu **g, int *done) {
    int error = gpu_of(d, g);
    if (error) return error;
    if (d->slice) return NOT_SUPPORTED;
    *done = (*g)->limit_ignored != 0;
    return (*g)->limit_error;
}

static unsigned milli(double watts) { return (unsigned)llround(watts * 1e3); }

int nvmlDeviceGetPowerManagementLimit(Device d, unsigned *limit_mw) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (error) return error;
    if (d->slice || g->highest_w <= 0) return NOT_SUPPORTED;
    *limit_mw = milli(change_at(g, INFINITY).limit_w);
    return OK;
}

int nvmlDeviceGetEnforcedPowerLimit(Device d, unsigned *limit_mw) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (error) return error;
    if (d->slice || g->highest_w <= 0) return NOT_SUPPORTED;
    *limit_mw = milli(change_at(g, INFINITY).effective_w);
    return OK;
}

int nvmlDeviceGetPowerManagementDefaultLimit(Device d, unsigned *limit_mw) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (error) return error;
    if (d->slice || g->highest_w <= 0) return NOT_SUPPORTED;
    *limit_mw = milli(g->default_w);
    return OK;
}

int nvmlDeviceGetPowerManagementLimitConstraints(Device d, unsigned *lowest_mw, unsigned *highest_mw) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (error) return error;
    if (d->slice || g->highest_w <= 0) return NOT_SUPPORTED;
    *lowest_mw = milli(g->lowest_w), *highest_mw = milli(g->highest_w);
    return OK;
}

int nvmlDeviceSetPowerManagementLimit(Device d, unsigned limit_mw) {
    Gpu *g;
    int done, error = settable(d, &g, &done);
    if (error) return error;
    if (g->highest_w <= 0) return NOT_SUPPORTED;
    if (limit_mw < milli(g->lowest_w) || limit_mw > milli(g->highest_w)) return INVALID;
    return done ? OK : simulated_set_limit(d->gpu, limit_mw * 1e-3);
}

int nvmlDeviceGetPersistenceMode(Device d, unsigned *mode) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (!error) *mode = g->persistence;
    return error;
}

/* Clocks are listed from the highest down. */
static int list(const uint32_t *clocks, unsigned known, unsigned *count, unsigned *to) {
    unsigned room = *count;
    *count = known;
    if (!known) return NOT_SUPPORTED;
    if (room < known || !to) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < known; i++) to[i] = clocks[known - 1 - i];
    return OK;
}

int nvmlDeviceGetSupportedMemoryClocks(Device d, unsigned *count, unsigned *clocks) {
    Gpu *g;
    int error = gpu_of(d, &g);
    return error ? error : list(g->memory_clock_mhz, g->memory_clocks, count, clocks);
}

int nvmlDeviceGetSupportedGraphicsClocks(Device d, unsigned memory_mhz, unsigned *count, unsigned *clocks) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (error) return error;
    for (unsigned i = 0; i < g->memory_clocks; i++)
        if (g->memory_clock_mhz[i] == memory_mhz) return list(g->clock_mhz, g->clocks, count, clocks);
    return NOT_FOUND;
}

/* The highest clock of a kind that is at most so high. */
static unsigned highest(const uint32_t *clocks, unsigned known, unsigned most_mhz) {
    unsigned i = known;
    while (i > 1 && clocks[i - 1] > most_mhz) i--;
    return clocks[i - 1];
}

static int clock_of(Device d, int type, int locked, unsigned *mhz) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (error) return error;
    if (type < 0 || type >= CLOCK_TYPES) return INVALID;
    int memory = type == CLOCK_MEMORY;
    if (!(memory ? g->memory_clocks : g->clocks)) return NOT_SUPPORTED;
    unsigned most = memory ? g->memory_locked_mhz[1] : g->locked_mhz[1];
    if (!locked || !most) most = ~0u;
    *mhz = memory ? highest(g->memory_clock_mhz, g->memory_clocks, most) : highest(g->clock_mhz, g->clocks, most);
    return OK;
}

/* A simulated GPU always works: it runs as fast as it may. */
int nvmlDeviceGetClockInfo(Device d, int type, unsigned *mhz) { return clock_of(d, type, 1, mhz); }

int nvmlDeviceGetMaxClockInfo(Device d, int type, unsigned *mhz) { return clock_of(d, type, 0, mhz); }

int nvmlDeviceGetMaxCustomerBoostClock(Device d, int type, unsigned *mhz) { return clock_of(d, type, 0, mhz); }

int nvmlDeviceGetCurrentClocksThrottleReasons(Device d, unsigned long long *reasons) {
    Gpu *g;
    int error = gpu_of(d, &g);
    if (error) return error;
    *reasons = load_w(g, now_s()) > change_at(g, INFINITY).effective_w ? REASON_POWER_CAP : 0;
    return OK;
}

int nvmlDeviceGetCurrentClocksEventReasons(Device d, unsigned long long *reasons) {
    return nvmlDeviceGetCurrentClocksThrottleReasons(d, reasons);
}

static int lock(Device d, int memory, unsigned lowest_mhz, unsigned highest_mhz) {
    Gpu *g;
    int done, error = settable(d, &g, &done);
    if (error) return error;
    if (!(memory ? g->memory_clocks : g->clocks)) return NOT_SUPPORTED;
    if (lowest_mhz > highest_mhz) return INVALID;
    uint32_t *locked = memory ? g->memory_locked_mhz : g->locked_mhz;
    if (!done) locked[0] = lowest_mhz, locked[1] = highest_mhz;
    return OK;
}

int nvmlDeviceSetGpuLockedClocks(Device d, unsigned lowest_mhz, unsigned highest_mhz) {
    return highest_mhz ? lock(d, 0, lowest_mhz, highest_mhz) : INVALID;
}

int nvmlDeviceResetGpuLockedClocks(Device d) { return lock(d, 0, 0, 0); }

int nvmlDeviceSetMemoryLockedClocks(Device d, unsigned lowest_mhz, unsigned highest_mhz) {
    return highest_mhz ? lock(d, 1, lowest_mhz, highest_mhz) : INVALID;
}

int nvmlDeviceResetMemoryLockedClocks(Device d) { return lock(d, 1, 0, 0); }

static int with_profiles(Device d, Gpu **g) {
    int error = gpu_of(d, g);
    if (error) return error;
    return d->slice || !(*g)->profiles ? NOT_SUPPORTED : OK;
}

static Mask known_profiles(const Gpu *g) {
    Mask known = {{0}};
    for (unsigned i = 0; i < g->profiles; i++) known.bits[g->profile[i] / 32] |= 1u << g->profile[i] % 32;
    return known;
}

int nvmlDeviceWorkloadPowerProfileGetProfilesInfo(Device d, ProfilesInfo *info) {
    Gpu *g;
    int error = with_profiles(d, &g);
    if (error) return error;
    info->known = known_profiles(g);
    for (unsigned i = 0; i < g->profiles; i++)
        info->profile[g->profile[i]].id = g->profile[i], info->profile[g->profile[i]].priority = i;
    return OK;
}

int nvmlDeviceWorkloadPowerProfileGetCurrentProfiles(Device d, CurrentProfiles *current) {
    Gpu *g;
    int error = with_profiles(d, &g);
    if (error) return error;
    current->known = known_profiles(g);
    memcpy(current->requested.bits, g->requested, sizeof g->requested);
    current->enforced = current->requested;
    return OK;
}

enum { PROFILES_CLEAR, PROFILES_SET, PROFILES_OVERWRITE };

static int request(Device d, const Mask *asked, unsigned operation) {
    Gpu *g;
    int done, error = settable(d, &g, &done);
    if (error) return error;
    if (!g->profiles) return NOT_SUPPORTED;
    if (operation > PROFILES_OVERWRITE) return INVALID;
    Mask known = known_profiles(g);
    for (int i = 0; operation && i < 8; i++)
        if (asked->bits[i] & ~known.bits[i]) return INVALID;
    for (int i = 0; !done && i < 8; i++) {
        uint32_t kept = operation == PROFILES_OVERWRITE ? 0 : g->requested[i];
        g->requested[i] = operation ? kept | asked->bits[i] : kept & ~asked->bits[i];
    }
    return OK;
}

int nvmlDeviceWorkloadPowerProfileUpdateProfiles_v1(Device d, UpdateProfiles *update) {
    return request(d, &update->profiles, update->operation);
}

int nvmlDeviceWorkloadPowerProfileSetRequestedProfiles(Device d, RequestedProfiles *asked) {
    return request(d, &asked->requested, PROFILES_SET);
}

int nvmlDeviceWorkloadPowerProfileClearRequestedProfiles(Device d, RequestedProfiles *asked) {
    return request(d, &asked->requested, PROFILES_CLEAR);
}
