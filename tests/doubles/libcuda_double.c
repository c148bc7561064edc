/* TEST DOUBLE of NVIDIA's CUDA driver: memory, streams, events and graphs on the host, so that code written for a GPU runs in tests.

   In:  calls of the driver API by their names, as pycuda does, or by cuGetProcAddress, as cuda-python does; device addresses are host addresses.
   Out: what the driver would do, later: a stream's work is done only when somebody waits for it, so that a missing wait shows.
   Counts of what is alive: double_live(kind); how often a GPU's primary context is retained: double_references(device).

   $LIBCUDA_DOUBLE_GPUS (1), $LIBCUDA_DOUBLE_CAPABILITY (90, for 9.0), $LIBCUDA_DOUBLE_MEMORY (bytes, 1 GiB).
   gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o libcuda.so.1 libcuda_double.c -lpthread */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
       INVALID_HANDLE = 400, NOT_FOUND = 500, CAPTURE_INVALIDATED = 901 };
enum { LIVE_DEVICE, LIVE_PINNED, LIVE_STREAMS, LIVE_EVENTS, LIVE_GRAPHS, LIVE_CONTEXTS, LIVE_BYTES, KINDS };

typedef struct Event Event;
typedef struct Stream Stream;
typedef struct Op { int kind; void *to; const void *from; size_t size; void (*call)(void *); void *data; Event *event;
                    uint64_t mark; struct Op *next; } Op;
enum { COPY, CALL, RECORD, WAIT };
struct Event { Stream *stream; uint64_t recorded, done; int destroyed, uses; };
typedef struct Graph { Op *first, **last; } Graph;
struct Stream { Op *first, **last; Graph *capturing; Stream *next; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t draining;  /* one thread runs work at a time, and may wait for another stream meanwhile */
static long live[KINDS];
static int contexts[16];
static __thread int stack[64], depth;
static uint64_t marks;
static Stream *streams;

__attribute__((constructor)) static void start(void) {
    pthread_mutexattr_t kind;
    pthread_mutexattr_init(&kind);
    pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&draining, &kind);
}

static long setting(const char *name, long otherwise) { return getenv(name) ? atol(getenv(name)) : otherwise; }
static int gpus(void) { return (int)setting("LIBCUDA_DOUBLE_GPUS", 1); }
static size_t memory(void) { return (size_t)setting("LIBCUDA_DOUBLE_MEMORY", 1L << 30); }
static void count(int kind, long by) { __atomic_add_fetch(&live[kind], by, __ATOMIC_SEQ_CST); }

long double_live(int kind) { return kind < 0 || kind >= KINDS ? -1 : live[kind]; }

int double_references(int device) { return contexts[device]; }

#define NEEDS_CONTEXT if (!depth) return INVALID_CONTEXT

Result cuInit(unsigned flags) { (void)flags; return gpus() ? OK : NO_DEVICE; }
Result cuDriverGetVersion(int *v) { *v = 13000; return OK; }
Result cuDeviceGetCount(int *n) { *n = gpus(); return OK; }
Result cuDeviceGet(int *device, int i) { if (i < 0 || i >= gpus()) return INVALID_DEVICE; *device = i; return OK; }
Result cuDeviceGetName(char *name, int size, int device) { (void)device; strncpy(name, "Test Double GPU", (size_t)size); return OK; }
Result cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = memory(); return OK; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    long capability = setting("LIBCUDA_DOUBLE_CAPABILITY", 90);
    *value = attribute == 75 ? (int)(capability / 10) : attribute == 76 ? (int)(capability % 10) : 1;
    return OK;
}
Result cuDeviceComputeCapability(int *major, int *minor, int device) {
    return cuDeviceGetAttribute(major, 75, device) || cuDeviceGetAttribute(minor, 76, device);
}
Result cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, device, 16); return OK; }

Result cuDevicePrimaryCtxRetain(void **context, int device) {
    if (device < 0 || device >= gpus()) return INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    if (contexts[device]++ == 0) count(LIVE_CONTEXTS, 1);
    pthread_mutex_unlock(&lock);
    *context = (void *)(uintptr_t)(0x1000 + device);
    return OK;
}
Result cuDevicePrimaryCtxRelease_v2(int device) {
    pthread_mutex_lock(&lock);
    Result result = contexts[device] > 0 ? OK : INVALID_CONTEXT;
    if (!result && --contexts[device] == 0) count(LIVE_CONTEXTS, -1);
    pthread_mutex_unlock(&lock);
    return result;
}
Result cuCtxPushCurrent_v2(void *context) {
    int device = (int)((uintptr_t)context - 0x1000);
    if (device < 0 || device >= 16 || !contexts[device] || depth == 64) return INVALID_CONTEXT;
    stack[depth++] = device;
    return OK;
}
Result cuCtxPopCurrent_v2(void **context) {
    if (!depth) return INVALID_CONTEXT;
    depth--;
    if (context) *context = (void *)(uintptr_t)(0x1000 + stack[depth]);
    return OK;
}
Result cuCtxGetCurrent(void **context) {
    *context = depth && contexts[stack[depth - 1]] ? (void *)(uintptr_t)(0x1000 + stack[depth - 1]) : NULL;
    return OK;
}
Result cuCtxGetDevice(int *device) { NEEDS_CONTEXT; *device = stack[depth - 1]; return OK; }

/* 256 bytes before the block hold its size; a GPU's allocations are aligned to 256. */
static Result allocate(void **address, size_t size, int kind) {
    NEEDS_CONTEXT;
    if (!size) return INVALID_VALUE;
    if (kind == LIVE_DEVICE && (size_t)live[LIVE_BYTES] + size > memory()) return OUT_OF_MEMORY;
    char *block;
    if (posix_memalign((void **)&block, 256, size + 256)) return OUT_OF_MEMORY;
    *(size_t *)block = size;
    *(int *)(block + 8) = kind;
    memset(block + 256, 0xAB, size);
    count(kind, 1);
    if (kind == LIVE_DEVICE) count(LIVE_BYTES, (long)size);
    *address = block + 256;
    return OK;
}
static Result release(void *address, int kind) {
    NEEDS_CONTEXT;
    char *block = (char *)address - 256;
    if (*(int *)(block + 8) != kind) return INVALID_VALUE;
    if (kind == LIVE_DEVICE) count(LIVE_BYTES, -(long)*(size_t *)block);
    *(int *)(block + 8) = -1;
    count(kind, -1);
    memset(address, 0xCD, *(size_t *)block);
    free(block);
    return OK;
}
Result cuMemAlloc_v2(void **address, size_t size) { return allocate(address, size, LIVE_DEVICE); }
Result cuMemFree_v2(void *address) { return release(address, LIVE_DEVICE); }
Result cuMemAllocHost_v2(void **address, size_t size) { return allocate(address, size, LIVE_PINNED); }
Result cuMemHostAlloc(void **address, size_t size, unsigned flags) { (void)flags; return allocate(address, size, LIVE_PINNED); }
Result cuMemFreeHost(void *address) { return release(address, LIVE_PINNED); }
Result cuMemGetInfo_v2(size_t *left, size_t *total) {
    NEEDS_CONTEXT;
    *total = memory();
    *left = *total - (size_t)live[LIVE_BYTES];
    return OK;
}

static Op *new_op(int kind) { Op *op = calloc(1, sizeof(Op)); op->kind = kind; return op; }
static void append(Stream *s, Op *op) {
    pthread_mutex_lock(&lock);
    Op ***last = s->capturing ? &s->capturing->last : &s->last;
    **last = op;
    *last = &op->next;
    pthread_mutex_unlock(&lock);
}
static int is_default(Stream *s) { return (uintptr_t)s < 3; }
static void run_op(Op *op);

static void drain(Stream *s, uint64_t until) {  /* up to the mark, or all when 0 */
    pthread_mutex_lock(&draining);
    for (;;) {
        pthread_mutex_lock(&lock);
        Op *op = s->first;
        if (op && !(s->first = op->next)) s->last = &s->first;
        pthread_mutex_unlock(&lock);
        if (!op) break;
        run_op(op);
        int found = until && op->kind == RECORD && op->mark == until;
        free(op);
        if (found) break;
    }
    pthread_mutex_unlock(&draining);
}
static void run_op(Op *op) {
    if (op->kind == COPY) memcpy(op->to, op->from, op->size);
    if (op->kind == CALL) op->call(op->data);
    if (op->kind == RECORD) op->event->done = op->mark;
    if (op->kind == WAIT && op->event->done < op->mark && op->event->stream) drain(op->event->stream, op->mark);
    if (op->event && --op->event->uses == 0 && op->event->destroyed) free(op->event);
}

Result cuStreamCreate(Stream **stream, unsigned flags) {
    NEEDS_CONTEXT;
    (void)flags;
    *stream = calloc(1, sizeof(Stream));
    (*stream)->last = &(*stream)->first;
    pthread_mutex_lock(&lock);
    (*stream)->next = streams;
    streams = *stream;
    pthread_mutex_unlock(&lock);
    count(LIVE_STREAMS, 1);
    return OK;
}
Result cuStreamDestroy_v2(Stream *s) {
    NEEDS_CONTEXT;
    drain(s, 0);
    pthread_mutex_lock(&draining);
    pthread_mutex_lock(&lock);
    for (Stream **each = &streams; *each; each = &(*each)->next) if (*each == s) { *each = s->next; break; }
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&draining);
    free(s);
    count(LIVE_STREAMS, -1);
    return OK;
}
Result cuCtxSynchronize(void) {
    NEEDS_CONTEXT;
    pthread_mutex_lock(&draining);  /* no stream goes meanwhile */
    for (Stream *each = streams; each; each = each->next) if (!each->capturing) drain(each, 0);
    pthread_mutex_unlock(&draining);
    return OK;
}
Result cuStreamSynchronize(Stream *s) {
    NEEDS_CONTEXT;
    if (is_default(s)) return OK;
    if (s->capturing) return CAPTURE_INVALIDATED;
    drain(s, 0);
    return OK;
}
static Result copy(void *to, const void *from, size_t size, Stream *s) {
    NEEDS_CONTEXT;
    if (is_default(s)) { memcpy(to, from, size); return OK; }
    Op *op = new_op(COPY);
    op->to = to; op->from = from; op->size = size;
    append(s, op);
    return OK;
}
Result cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, Stream *s) { return copy(to, from, size, s); }
Result cuMemcpyDtoHAsync_v2(void *to, void *from, size_t size, Stream *s) { return copy(to, from, size, s); }
Result cuMemcpyDtoDAsync_v2(void *to, void *from, size_t size, Stream *s) { return copy(to, from, size, s); }
Result cuLaunchHostFunc(Stream *s, void (*call)(void *), void *data) {
    NEEDS_CONTEXT;
    if (is_default(s)) { call(data); return OK; }
    Op *op = new_op(CALL);
    op->call = call; op->data = data;
    append(s, op);
    return OK;
}

Result cuEventCreate(Event **event, unsigned flags) {
    NEEDS_CONTEXT;
    (void)flags;
    *event = calloc(1, sizeof(Event));
    count(LIVE_EVENTS, 1);
    return OK;
}
Result cuEventRecord(Event *event, Stream *s) {
    NEEDS_CONTEXT;
    uint64_t mark = __atomic_add_fetch(&marks, 1, __ATOMIC_SEQ_CST);
    event->recorded = mark;
    event->stream = is_default(s) ? NULL : s;
    if (is_default(s)) { event->done = mark; return OK; }
    Op *op = new_op(RECORD);
    op->event = event; op->mark = mark; event->uses++;
    append(s, op);
    return OK;
}
Result cuStreamWaitEvent(Stream *s, Event *event, unsigned flags) {
    NEEDS_CONTEXT;
    (void)flags;
    if (is_default(s)) return OK;
    Op *op = new_op(WAIT);
    op->event = event; op->mark = event->recorded; event->uses++;
    append(s, op);
    return OK;
}
Result cuEventSynchronize(Event *event) {
    NEEDS_CONTEXT;
    if (event->done < event->recorded && event->stream) drain(event->stream, event->recorded);
    return OK;
}
Result cuEventElapsedTime_v2(float *ms, Event *from, Event *to) {
    *ms = (float)(to->recorded - from->recorded) * 0.001f;
    return from->done && to->done ? OK : INVALID_HANDLE;
}
Result cuEventDestroy_v2(Event *event) {
    NEEDS_CONTEXT;
    count(LIVE_EVENTS, -1);
    event->destroyed = 1;
    if (!event->uses) free(event);
    return OK;
}

Result cuStreamBeginCapture_v2(Stream *s, int mode) {
    NEEDS_CONTEXT;
    (void)mode;
    if (s->capturing) return INVALID_VALUE;
    s->capturing = calloc(1, sizeof(Graph));
    s->capturing->last = &s->capturing->first;
    count(LIVE_GRAPHS, 1);
    return OK;
}
Result cuStreamEndCapture(Stream *s, Graph **graph) {
    NEEDS_CONTEXT;
    if (!s->capturing) return INVALID_VALUE;
    *graph = s->capturing;
    s->capturing = NULL;
    return OK;
}
Result cuStreamIsCapturing(Stream *s, int *state) { *state = !is_default(s) && s->capturing; return OK; }
static void copy_ops(Op *from, void (*give)(void *, Op *), void *whom) {
    for (; from; from = from->next) {
        Op *op = new_op(from->kind);
        *op = *from;
        op->next = NULL;
        give(whom, op);
    }
}
static void to_graph(void *graph, Op *op) { Graph *g = graph; *g->last = op; g->last = &op->next; }
static void to_stream(void *stream, Op *op) { append(stream, op); }
static void free_ops(Op *op) { while (op) { Op *next = op->next; free(op); op = next; } }
Result cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, uint64_t flags) {
    NEEDS_CONTEXT;
    (void)flags;
    *executable = calloc(1, sizeof(Graph));
    (*executable)->last = &(*executable)->first;
    copy_ops(graph->first, to_graph, *executable);
    count(LIVE_GRAPHS, 1);
    return OK;
}
Result cuGraphLaunch(Graph *executable, Stream *s) { NEEDS_CONTEXT; copy_ops(executable->first, to_stream, s); return OK; }
static Result destroy_graph(Graph *graph) { free_ops(graph->first); free(graph); count(LIVE_GRAPHS, -1); return OK; }
Result cuGraphDestroy(Graph *graph) { return destroy_graph(graph); }
Result cuGraphExecDestroy(Graph *graph) { return destroy_graph(graph); }

Result cuGetErrorName(Result error, const char **name) { (void)error; *name = "CUDA_ERROR_OF_THE_TEST_DOUBLE"; return OK; }
Result cuGetErrorString(Result error, const char **text) { return cuGetErrorName(error, text); }

#define NAMED(name, function) { name, (void *)function }
Result cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *found);
static const struct { const char *name; void *function; } TABLE[] = {
    NAMED("cuInit", cuInit), NAMED("cuDriverGetVersion", cuDriverGetVersion), NAMED("cuDeviceGetCount", cuDeviceGetCount),
    NAMED("cuDeviceGet", cuDeviceGet), NAMED("cuDeviceGetName", cuDeviceGetName), NAMED("cuDeviceTotalMem", cuDeviceTotalMem_v2),
    NAMED("cuDeviceGetAttribute", cuDeviceGetAttribute), NAMED("cuDeviceGetUuid", cuDeviceGetUuid_v2),
    NAMED("cuDevicePrimaryCtxRetain", cuDevicePrimaryCtxRetain), NAMED("cuDevicePrimaryCtxRelease", cuDevicePrimaryCtxRelease_v2),
    NAMED("cuCtxPushCurrent", cuCtxPushCurrent_v2), NAMED("cuCtxPopCurrent", cuCtxPopCurrent_v2),
    NAMED("cuCtxSynchronize", cuCtxSynchronize), NAMED("cuCtxGetCurrent", cuCtxGetCurrent), NAMED("cuCtxGetDevice", cuCtxGetDevice), NAMED("cuMemAlloc", cuMemAlloc_v2),
    NAMED("cuMemFree", cuMemFree_v2), NAMED("cuMemAllocHost", cuMemAllocHost_v2), NAMED("cuMemFreeHost", cuMemFreeHost),
    NAMED("cuMemGetInfo", cuMemGetInfo_v2), NAMED("cuMemcpyHtoDAsync", cuMemcpyHtoDAsync_v2),
    NAMED("cuMemcpyDtoHAsync", cuMemcpyDtoHAsync_v2), NAMED("cuMemcpyDtoDAsync", cuMemcpyDtoDAsync_v2),
    NAMED("cuStreamCreate", cuStreamCreate), NAMED("cuStreamDestroy", cuStreamDestroy_v2),
    NAMED("cuStreamSynchronize", cuStreamSynchronize), NAMED("cuStreamWaitEvent", cuStreamWaitEvent),
    NAMED("cuEventCreate", cuEventCreate), NAMED("cuEventRecord", cuEventRecord), NAMED("cuEventSynchronize", cuEventSynchronize),
    NAMED("cuEventElapsedTime", cuEventElapsedTime_v2), NAMED("cuEventDestroy", cuEventDestroy_v2),
    NAMED("cuStreamBeginCapture", cuStreamBeginCapture_v2), NAMED("cuStreamEndCapture", cuStreamEndCapture),
    NAMED("cuStreamIsCapturing", cuStreamIsCapturing), NAMED("cuGraphInstantiate", cuGraphInstantiateWithFlags),
    NAMED("cuGraphInstantiateWithFlags", cuGraphInstantiateWithFlags), NAMED("cuGraphLaunch", cuGraphLaunch),
    NAMED("cuGraphDestroy", cuGraphDestroy), NAMED("cuGraphExecDestroy", cuGraphExecDestroy),
    NAMED("cuLaunchHostFunc", cuLaunchHostFunc), NAMED("cuGetErrorName", cuGetErrorName),
    NAMED("cuGetErrorString", cuGetErrorString), NAMED("cuGetProcAddress", cuGetProcAddress_v2)};

Result cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *found) {
    (void)version; (void)flags;
    *function = NULL;
    for (size_t i = 0; i < sizeof(TABLE) / sizeof(*TABLE); i++)
        if (!strcmp(symbol, TABLE[i].name)) *function = TABLE[i].function;
    if (found) *found = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
