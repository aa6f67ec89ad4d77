/* Byte kernels of the frame codec: masking (RFC 6455 section 5.3) and UTF-8 validation (RFC 3629).
 *
 * Pure C, no Python. sf_mask() works in place at any alignment and tells whether a byte above 0x7F came
 * out, so that a text message is unmasked and known to be ASCII in one pass. The AVX2 variant is compiled
 * by a function attribute and chosen at run time; the word loop is what every other machine gets.
 */
#ifndef STREET_FAST_KERNELS_H
#define STREET_FAST_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define SF_HAVE_AVX2 1
#include <immintrin.h>
#endif

#define SF_HIGH_BITS UINT64_C(0x8080808080808080)

/* The key as eight bytes in memory order, turned so that its first byte meets payload byte `phase`. */
static inline uint64_t sf_key(const uint8_t mask[4], size_t phase) {
    uint8_t k[8];
    uint64_t key;
    for (size_t i = 0; i < 8; i++) k[i] = mask[(phase + i) & 3];
    memcpy(&key, k, 8);
    return key;
}

static inline int sf_mask_words(uint8_t *p, size_t n, uint64_t key) {
    uint64_t seen = 0, word;
    uint8_t k[8];
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&word, p, 8);
        word ^= key;
        seen |= word;
        memcpy(p, &word, 8);
    }
    memcpy(k, &key, 8);
    for (size_t i = 0; i < n; i++) {
        p[i] ^= k[i];
        seen |= p[i];
    }
    return (seen & SF_HIGH_BITS) != 0;
}

#ifdef SF_HAVE_AVX2
__attribute__((target("avx2"))) static int sf_mask_avx2(uint8_t *p, size_t n, uint64_t key) {
    /* Stores that cross a cache line cost double, so the long run starts at a multiple of 32. */
    const size_t lead = (size_t)(-(uintptr_t)p & 31);
    const unsigned turn = (unsigned)(lead & 7) * 8;
    int high = sf_mask_words(p, lead, key);
    p += lead;
    n -= lead;
    if (turn) key = key >> turn | key << (64 - turn);
    const __m256i k = _mm256_set1_epi64x((long long)key);
    __m256i seen = _mm256_setzero_si256();
    for (; n >= 128; p += 128, n -= 128) {
        __m256i a = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)p), k);
        __m256i b = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(p + 32)), k);
        __m256i c = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(p + 64)), k);
        __m256i d = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(p + 96)), k);
        _mm256_storeu_si256((__m256i *)p, a);
        _mm256_storeu_si256((__m256i *)(p + 32), b);
        _mm256_storeu_si256((__m256i *)(p + 64), c);
        _mm256_storeu_si256((__m256i *)(p + 96), d);
        seen = _mm256_or_si256(seen, _mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d)));
    }
    for (; n >= 32; p += 32, n -= 32) {
        __m256i a = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)p), k);
        _mm256_storeu_si256((__m256i *)p, a);
        seen = _mm256_or_si256(seen, a);
    }
    high |= _mm256_movemask_epi8(seen) != 0;
    return sf_mask_words(p, n, key) | high;
}
#endif

static int (*sf_mask_long)(uint8_t *, size_t, uint64_t) = sf_mask_words;

static inline void sf_kernels_init(void) {
#ifdef SF_HAVE_AVX2
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) sf_mask_long = sf_mask_avx2;
#endif
}

/* Masks or unmasks in place; true if any resulting byte is not ASCII. */
static inline int sf_mask(uint8_t *p, size_t n, uint64_t key) {
    return n < 64 ? sf_mask_words(p, n, key) : sf_mask_long(p, n, key);
}

/* True if any byte is not ASCII. */
static inline int sf_not_ascii(const uint8_t *p, size_t n) {
    uint64_t seen = 0, word;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&word, p, 8);
        seen |= word;
    }
    for (size_t i = 0; i < n; i++) seen |= p[i];
    return (seen & SF_HIGH_BITS) != 0;
}

/* Where a UTF-8 stream stands: continuation bytes still needed, and the range the next one must be in.
 * The range is what makes overlong forms, surrogates and values above U+10FFFF fail at the first byte
 * that shows them (Unicode 15, table 3-7). */
typedef struct {
    uint8_t need, low, high;
} sf_utf8;

static inline int sf_continues(uint8_t c) { return (c & 0xC0) == 0x80; }

/* Goes on with `n` bytes. False at the first byte that cannot belong to UTF-8. */
static inline int sf_utf8_feed(sf_utf8 *state, const uint8_t *p, size_t n) {
    const uint8_t *end = p + n;
    uint8_t need = state->need, low = state->low, high = state->high;
    uint64_t word;
    while (p < end) {
        uint8_t c = *p;
        if (need) { /* inside a character that began in an earlier piece */
            if (c < low || c > high) return 0;
            low = 0x80;
            high = 0xBF;
            need--;
            p++;
            continue;
        }
        if (c < 0x80) {
            for (; end - p >= 8; p += 8) {
                memcpy(&word, p, 8);
                if (word & SF_HIGH_BITS) break;
            }
            while (p < end && *p < 0x80) p++;
            continue;
        }
        low = 0x80;
        high = 0xBF;
        if (c >= 0xC2 && c <= 0xDF) {
            need = 1;
        } else if ((c & 0xF0) == 0xE0) {
            need = 2;
            if (c == 0xE0) low = 0xA0;
            if (c == 0xED) high = 0x9F;
        } else if (c >= 0xF0 && c <= 0xF4) {
            need = 3;
            if (c == 0xF0) low = 0x90;
            if (c == 0xF4) high = 0x8F;
        } else {
            return 0;
        }
        if (end - p > need) { /* all of it is here */
            if (p[1] < low || p[1] > high) return 0;
            if (need > 1 && !sf_continues(p[2])) return 0;
            if (need > 2 && !sf_continues(p[3])) return 0;
            p += need + 1;
            need = 0;
        } else {
            p++;
        }
    }
    state->need = need;
    state->low = low;
    state->high = high;
    return 1;
}

#endif
