// Runs one kernel on the host: in blocks of threads where THREADS_OF_BLOCK says how many, otherwise as one thread, in which
// the kernels' loops over units take all of them. The first argument is the file that holds all memory, mapped, so that
// results stay there; the second holds the kernel's parameters, in which pointers are offsets into that memory; the third
// is the number of blocks.

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define __device__
#define __forceinline__ inline
#define __noinline__
#define __global__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#ifdef THREADS_OF_BLOCK
#include "block.h"
#else
struct Three { unsigned x; };
static const Three threadIdx = {0}, blockIdx = {0}, blockDim = {1}, gridDim = {1};
template <class Kernel> void run_blocks(unsigned, Kernel kernel) { kernel(); }
#endif

#include KERNEL

static char* memory;

template <class T> struct Parameter {
    static T read(const char* from) {
        T value;
        memcpy(&value, from, sizeof(T));
        return value;
    }
};
template <class T> struct Parameter<T*> {
    static T* read(const char* from) { return (T*)(memory + Parameter<long long>::read(from)); }
};
template <template <class> class View, class T> struct Parameter<View<T>> {
    static View<T> read(const char* from) {
        View<T> view;
        memcpy((void*)&view, from, sizeof(view));
        view.data = Parameter<T*>::read(from);
        return view;
    }
};

template <int... I> struct Numbers {};

template <class... P, int... I> void run(void (*kernel)(P...), const char* parameters, unsigned blocks, Numbers<I...>) {
    const size_t sizes[] = {sizeof(P)...};
    size_t places[sizeof...(P)] = {};
    for (size_t i = 1; i < sizeof...(P); ++i) places[i] = places[i - 1] + (sizes[i - 1] + 7) / 8 * 8;
    run_blocks(blocks, [&] { kernel(Parameter<P>::read(parameters + places[I])...); });
}

template <class... P> void run(void (*kernel)(P...), const char* parameters, unsigned blocks) {
    run(kernel, parameters, blocks, Numbers<__integer_pack((int)sizeof...(P))...>());
}

static char* map(const char* path) {
    const int file = open(path, O_RDWR);
    struct stat status;
    if (file < 0 || fstat(file, &status)) return nullptr;
    void* at = mmap(nullptr, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    return at == MAP_FAILED ? nullptr : (char*)at;
}

int main(int, char** arguments) {
    memory = map(arguments[1]);
    const char* parameters = map(arguments[2]);
    if (!memory || !parameters) return 1;
    run(ENTRY, parameters, atoi(arguments[3]));
    return 0;
}
