/* Stands in for libnvidia-ml.so.1 of a machine with three GPUs; the signatures are those of nvml.h.
 *
 * GPU 0 takes 400 W and is held down by its power cap. GPU 1 takes 100 W, idles, has no energy counter, and fails
 * when it is asked for its temperature. GPU 2 is lost. */
#include <stdint.h>
#include <time.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, GPU_IS_LOST = 15 };
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int gpu, memory; } Utilization;

static uintptr_t index_of(void *device) { return (uintptr_t)device - 1; }

static unsigned long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000ull + now.tv_nsec / 1000000;
}

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return SUCCESS; }
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "Not Supported"; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 3; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    *device = (void *)(uintptr_t)(index + 1);
    return index == 2 ? GPU_IS_LOST : SUCCESS;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned int *milliwatts) {
    *milliwatts = index_of(device) ? 100000 : 400000;
    return SUCCESS;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    *millijoules = 400 * now_ms();
    return index_of(device) ? NOT_SUPPORTED : SUCCESS;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *celsius) {
    (void)sensor;
    *celsius = 64;
    return index_of(device) ? GPU_IS_LOST : SUCCESS;
}
int nvmlDeviceGetClockInfo(void *device, int clock, unsigned int *megahertz) {
    (void)device;
    *megahertz = clock == 1 ? 1980 : 2619;
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
    (void)device;
    *memory = (Memory){.total = 150754820096ull, .free = 140754820096ull, .used = 10000000000ull};
    return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(void *device, Utilization *rates) {
    (void)device;
    *rates = (Utilization){.gpu = 97, .memory = 40};
    return SUCCESS;
}
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *mask) {
    *mask = index_of(device) ? 0x1 : 0x4;
    return SUCCESS;
}
