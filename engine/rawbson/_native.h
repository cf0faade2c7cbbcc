/* What the compiled files share: the rules of BSON's types, and the buffers that Python hands over. */

#ifndef HEADRACE_NATIVE_H
#define HEADRACE_NATIVE_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef const unsigned char Byte;

/* How to find the end of a value of each type, without a branch that depends on the type: its size is `base`, plus its
leading int32 if `sized` has all bits. A regular expression is two C strings; there are no values of unknown types. */
typedef struct {
    int32_t base, sized, minimum;
    unsigned char nul;     /* the bits that its last byte must not have */
    unsigned char payload; /* the size of its payload, or 0 */
    unsigned char size_by;
} Rule;

enum { UNKNOWN, BASE_AND_SIZE, TWO_STRINGS };

#pragma GCC visibility push(hidden)

extern Rule RULES[256];

/* Documents and their values, given as a buffer and the bounds of each. */
typedef struct {
    Py_buffer data, starts, ends, rows;
    Byte *bytes;
    size_t size, count;
    int has_rows;
} Input;

int take(Input *input, PyObject *data, PyObject *starts, PyObject *ends, PyObject *rows);
void release(Input *input);
int sound(const Input *input, size_t n);
PyObject *json(PyObject *self, PyObject *args);

#pragma GCC visibility pop

/* Sixteen bytes may be loaded from a document's last byte on. */
enum { PADDING = 16 };

static inline int32_t int32_at(Byte *at) {
    int32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t word_at(Byte *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline int64_t nth(const Py_buffer *ints, size_t n) {
    const char *at = (char *)ints->buf + (Py_ssize_t)n * ints->strides[0];
    if (ints->itemsize == sizeof(int64_t)) {
        int64_t value;
        memcpy(&value, at, sizeof value);
        return value;
    }
    return int32_at((Byte *)at);
}

/* The number of a row, which is its place unless the input says another. */
static inline int64_t row_of(const Input *input, size_t n) {
    return input->has_rows ? nth(&input->rows, n) : (int64_t)n;
}

/* The end of the value at `value` within a document whose closing NUL is at `last`; NULL if it breaks a rule. */
static inline Byte *end_of(const Rule *rule, Byte *value, Byte *last) {
    if (value > last)
        return NULL;
    if (rule->size_by == BASE_AND_SIZE) {
        int64_t size = (int64_t)rule->base + (int32_at(value) & rule->sized);
        if (size < rule->minimum || size > last - value || value[size - 1] & rule->nul)
            return NULL;
        return value + size;
    }
    if (rule->size_by == UNKNOWN)
        return NULL;
    Byte *stop = memchr(value, 0, (size_t)(last - value)); /* two C strings */
    stop = stop ? memchr(stop + 1, 0, (size_t)(last - (stop + 1))) : NULL;
    return stop ? stop + 1 : NULL;
}

/* Whether an array's element has this key of `length` digits, which ends in a NUL and has room for eight bytes. As
many can be loaded at `name`, which lies within a document. */
static inline int is_key(Byte *name, const char *key, size_t length) {
    if (length < 8) { /* a call would take longer than the comparison */
        const uint64_t mask = ~(uint64_t)0 >> (8 * (7 - length));
        return !((word_at(name) ^ word_at((Byte *)key)) & mask);
    }
    return !memcmp(name, key, length + 1);
}

/* The key of the next element of an array, in decimal digits and a NUL. */
static inline void count_up(char *key, size_t *length) {
    size_t place = *length;
    while (place && key[place - 1] == '9')
        key[--place] = '0';
    if (place) {
        key[place - 1]++;
    } else {
        memmove(key + 1, key, *length + 1);
        key[0] = '1';
        ++*length;
    }
}

#endif
