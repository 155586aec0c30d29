// forward_instructions.cu on the host.

template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
inline float __int_as_float(int bits) { return __builtin_bit_cast(float, bits); }
inline float __shfl_xor_sync(unsigned, float x, int distance) { return from_partner(x, distance); }
inline u32 __shfl_xor_sync(unsigned, u32 x, int distance) { return from_partner(x, distance); }
inline u32 __shfl_sync(unsigned, u32 x, int lane) { return from_lane(x, lane); }
inline bool __any_sync(unsigned, bool holds) { return ballot(holds) != 0; }
struct uint4 { u32 x, y, z, w; };
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }

// Places in shared memory count from its start.
inline u32 shared_address(const void* p) { return (u32)((const char*)p - dynamic_shared); }

inline float exp2_fast(float x) { return exp2f(x); }
inline float log2_fast(float x) { return log2f(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline float tanh_fast(float x) { return tanhf(x); }

#if ELEMENT_BF16
inline u16 narrow(float x) {
    const u32 bits = __builtin_bit_cast(u32, x);
    if (x != x) return (u16)(bits >> 16 | 0x40);
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float wide(u16 x) { return __builtin_bit_cast(float, (u32)x << 16); }
#else
inline u16 narrow(float x) { return __builtin_bit_cast(u16, (_Float16)x); }
inline float wide(u16 x) { return __builtin_bit_cast(_Float16, x); }
#endif
inline u32 pack(float low, float high) { return narrow(low) | (u32)narrow(high) << 16; }
