/* Documents and arrays as relaxed Extended JSON, compiled.

Optional, as _native.c is. Whatever is not plain (see json() below) is left to the code in decode/json.py, which writes
all values, and whose texts those of this file equal byte by byte. Bytes are never trusted: each size is checked before
it is used. */

#include "_native.h"
#include <math.h>

enum { MOST_LEVELS = 64, MOST_NAMES = 256 };
enum { DOUBLE = 1, STRING, DOCUMENT, ARRAY, BINARY, OBJECT_ID = 7, BOOL, DATE, NULL_, INT32 = 16, TIMESTAMP, INT64,
       DECIMAL128, MIN_KEY = 255, MAX_KEY = 127, OLD_BINARY = 2 };

/* What a step tells: it has written, or the value is not plain, or there is no memory. */
typedef enum { WRITTEN, NOT_PLAIN, NO_MEMORY } Told;

typedef struct {
    char *bytes;
    size_t size, capacity;
    uint32_t names[MOST_NAMES]; /* the hashes of the names of the open documents, outermost first */
    size_t name_count;
} Text;

/* Room for so many bytes, which the caller writes at `bytes + size`. */
static int room(Text *text, size_t more) {
    if (text->capacity - text->size >= more)
        return 1;
    size_t capacity = 2 * text->capacity + more;
    char *bytes = realloc(text->bytes, capacity);
    if (!bytes)
        return 0;
    text->bytes = bytes;
    text->capacity = capacity;
    return 1;
}

static void put(Text *text, const char *what, size_t size) {
    memcpy(text->bytes + text->size, what, size);
    text->size += size;
}

#define PUT(text, literal) put(text, literal, sizeof(literal) - 1)

static void put_hex(Text *text, Byte *at, size_t size) {
    static const char digits[] = "0123456789abcdef";
    for (size_t n = 0; n < size; n++) {
        text->bytes[text->size++] = digits[at[n] >> 4];
        text->bytes[text->size++] = digits[at[n] & 15];
    }
}

/* At most 20 bytes; filled with zeros to `least` digits. */
static void put_integer(Text *text, int64_t value, int least) {
    char digits[20];
    int count = 0;
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    do
        digits[count++] = (char)('0' + rest % 10);
    while ((rest /= 10) || count < least);
    if (value < 0)
        text->bytes[text->size++] = '-';
    while (count)
        text->bytes[text->size++] = digits[--count];
}

/* How many bytes the UTF-8 character at `at` has; 0 if it is none. Not for ASCII. */
static size_t width_of(Byte *at, Byte *stop) {
    size_t width = *at >= 0xF0 ? 4 : *at >= 0xE0 ? 3 : 2;
    if (*at < 0xC2 || *at > 0xF4 || (size_t)(stop - at) < width)
        return 0;
    for (size_t n = 1; n < width; n++)
        if ((at[n] & 0xC0) != 0x80)
            return 0;
    if ((*at == 0xE0 && at[1] < 0xA0) || (*at == 0xED && at[1] > 0x9F) || (*at == 0xF0 && at[1] < 0x90) ||
        (*at == 0xF4 && at[1] > 0x8F))
        return 0;
    return width;
}

static Told put_string(Text *text, Byte *at, Byte *stop) {
    if (!room(text, 6 * (size_t)(stop - at) + 2))
        return NO_MEMORY;
    char *out = text->bytes + text->size;
    *out++ = '"';
    while (at < stop) {
        if (*at >= 0x80) {
            size_t width = width_of(at, stop);
            if (!width)
                return NOT_PLAIN;
            while (width--)
                *out++ = (char)*at++;
        } else if (*at >= ' ' && *at != '"' && *at != '\\') {
            *out++ = (char)*at++;
        } else {
            static const char plain[] = "uuuuuuuubtnufr";
            char escape = *at >= ' ' ? (char)*at : *at < sizeof plain - 1 ? plain[*at] : 'u';
            *out++ = '\\';
            *out++ = escape;
            if (escape == 'u') {
                *out++ = '0', *out++ = '0';
                *out++ = (char)('0' + (*at >> 4));
                *out++ = "0123456789abcdef"[*at & 15];
            }
            at++;
        }
    }
    *out++ = '"';
    text->size = (size_t)(out - text->bytes);
    return WRITTEN;
}

/* Always with a point. Those that Python writes with an exponent are written differently elsewhere. */
static Told put_double(Text *text, double value) {
    if (fabs(value) < 1e15 && value == floor(value) && (value != 0 || !signbit(value))) {
        put_integer(text, (int64_t)value, 1);
        PUT(text, ".0");
        return WRITTEN;
    }
    if (!isfinite(value))
        return NOT_PLAIN;
    char *digits = PyOS_double_to_string(value, 'r', 0, Py_DTSF_ADD_DOT_0, NULL);
    if (!digits)
        return NO_MEMORY;
    size_t size = strlen(digits);
    Told told = memchr(digits, 'e', size) ? NOT_PLAIN : WRITTEN;
    if (told == WRITTEN)
        put(text, digits, size); /* at most 25 bytes */
    PyMem_Free(digits);
    return told;
}

/* Numbers that are written without an exponent: those are neither special nor large, nor have a leading digit behind
the sixth place. */
static Told put_decimal(Text *text, Byte *at) {
    const uint64_t low = word_at(at), high = word_at(at + 8);
    const unsigned __int128 limit = (unsigned __int128)100000000000000000ULL * 100000000000000000ULL; /* 34 digits */
    unsigned __int128 rest = (unsigned __int128)(high & 0x1FFFFFFFFFFFFULL) << 64 | low;
    int places = 6176 - (int)(high >> 49 & 0x3FFF), count = 0;
    char digits[48];
    if ((high >> 61 & 3) == 3 || rest >= limit || places < 0)
        return NOT_PLAIN;
    do
        digits[count++] = (char)('0' + (int)(rest % 10));
    while (rest /= 10);
    if (count - places < -5)
        return NOT_PLAIN;
    while (count <= places)
        digits[count++] = '0';
    PUT(text, "{\"$numberDecimal\":\"");
    if (high >> 63)
        PUT(text, "-");
    while (count) {
        if (count-- == places)
            PUT(text, ".");
        text->bytes[text->size++] = digits[count];
    }
    PUT(text, "\"}");
    return WRITTEN;
}

/* RFC 3339 for the years 1970 to 9999, with milliseconds only if they are not 0; otherwise a number. */
static void put_date(Text *text, int64_t milliseconds) {
    PUT(text, "{\"$date\":");
    if (milliseconds < 0 || milliseconds >= 253402300800000) {
        PUT(text, "{\"$numberLong\":\"");
        put_integer(text, milliseconds, 1);
        PUT(text, "\"}}");
        return;
    }
    int64_t seconds = milliseconds / 1000, day = seconds / 86400, second = seconds % 86400;
    /* Years that begin in March, in eras of 400 of them. */
    int64_t shifted = day + 719468, era = shifted / 146097, of_era = shifted % 146097;
    int64_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int64_t of_year = of_era - (365 * year + year / 4 - year / 100), month = (5 * of_year + 2) / 153;
    int64_t number = month < 10 ? month + 3 : month - 9;
    PUT(text, "\"");
    put_integer(text, 400 * era + year + (number < 3), 4);
    PUT(text, "-");
    put_integer(text, number, 2);
    PUT(text, "-");
    put_integer(text, of_year - (153 * month + 2) / 5 + 1, 2);
    PUT(text, "T");
    put_integer(text, second / 3600, 2);
    PUT(text, ":");
    put_integer(text, second / 60 % 60, 2);
    PUT(text, ":");
    put_integer(text, second % 60, 2);
    if (milliseconds % 1000) {
        PUT(text, ".");
        put_integer(text, milliseconds % 1000, 3);
    }
    PUT(text, "Z\"}");
}

static Told put_binary(Text *text, Byte *at, Byte *stop) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char subtype = at[4];
    if (subtype == OLD_BINARY) /* has a second length */
        return NOT_PLAIN;
    if (!room(text, (size_t)(stop - at) / 3 * 4 + 64))
        return NO_MEMORY;
    PUT(text, "{\"$binary\":{\"base64\":\"");
    for (at += 5; at < stop; at += 3) {
        size_t left = (size_t)(stop - at);
        uint32_t bits = (uint32_t)at[0] << 16 | (left > 1 ? (uint32_t)at[1] << 8 : 0) | (left > 2 ? at[2] : 0);
        char *out = text->bytes + text->size;
        out[0] = digits[bits >> 18];
        out[1] = digits[bits >> 12 & 63];
        out[2] = left > 1 ? digits[bits >> 6 & 63] : '=';
        out[3] = left > 2 ? digits[bits & 63] : '=';
        text->size += 4;
    }
    PUT(text, "\",\"subType\":\"");
    put_hex(text, &subtype, 1);
    PUT(text, "\"}}");
    return WRITTEN;
}

static Told put_nested(Text *text, int is_array, Byte *at, Byte *stop, int depth);

static Told put_value(Text *text, int kind, Byte *at, Byte *stop, int depth) {
    double number;
    if (!room(text, 96))
        return NO_MEMORY;
    switch (kind) {
    case DOUBLE:
        memcpy(&number, at, sizeof number);
        return put_double(text, number);
    case STRING:
        return put_string(text, at + 4, stop - 1);
    case DOCUMENT:
    case ARRAY:
        return put_nested(text, kind == ARRAY, at, stop, depth + 1);
    case BINARY:
        return put_binary(text, at, stop);
    case OBJECT_ID:
        PUT(text, "{\"$oid\":\"");
        put_hex(text, at, 12);
        PUT(text, "\"}");
        return WRITTEN;
    case BOOL:
        if (*at > 1)
            return NOT_PLAIN;
        *at ? PUT(text, "true") : PUT(text, "false");
        return WRITTEN;
    case DATE:
        put_date(text, (int64_t)word_at(at));
        return WRITTEN;
    case NULL_:
        PUT(text, "null");
        return WRITTEN;
    case INT32:
        put_integer(text, int32_at(at), 1);
        return WRITTEN;
    case INT64:
        put_integer(text, (int64_t)word_at(at), 1);
        return WRITTEN;
    case TIMESTAMP:
        PUT(text, "{\"$timestamp\":{\"t\":");
        put_integer(text, (int64_t)(word_at(at) >> 32), 1);
        PUT(text, ",\"i\":");
        put_integer(text, (int64_t)(uint32_t)word_at(at), 1);
        PUT(text, "}}");
        return WRITTEN;
    case DECIMAL128:
        return put_decimal(text, at);
    case MIN_KEY:
        PUT(text, "{\"$minKey\":1}");
        return WRITTEN;
    case MAX_KEY:
        PUT(text, "{\"$maxKey\":1}");
        return WRITTEN;
    }
    return NOT_PLAIN;
}

/* Whether this name of an open document, the first of whose names is `first`, is a new one, as far as its hash tells. */
static int is_new(Text *text, size_t first, Byte *name, size_t length) {
    uint32_t hash = 2166136261u;
    for (size_t n = 0; n < length; n++)
        hash = (hash ^ name[n]) * 16777619u;
    if (text->name_count == MOST_NAMES)
        return 0;
    for (size_t n = first; n < text->name_count; n++)
        if (text->names[n] == hash)
            return 0;
    text->names[text->name_count++] = hash;
    return 1;
}

static Told put_nested(Text *text, int is_array, Byte *at, Byte *stop, int depth) {
    const size_t first = text->name_count;
    char key[16] = "0";
    size_t digits = 1;
    int is_first = 1;
    if (depth > MOST_LEVELS || stop - at < 5 || int32_at(at) != stop - at || stop[-1])
        return NOT_PLAIN;
    if (!room(text, 96))
        return NO_MEMORY;
    Byte *last = stop - 1;
    text->bytes[text->size++] = is_array ? '[' : '{';
    for (at += 4; at < last; is_first = 0) {
        int kind = *at++;
        Byte *name = at, *end = memchr(name, 0, (size_t)(last - name));
        if (!end)
            return NOT_PLAIN;
        Byte *value = end + 1, *next = end_of(&RULES[kind], value, last);
        if (!next)
            return NOT_PLAIN;
        if (!is_first)
            text->bytes[text->size++] = ',';
        if (is_array) {
            if (!is_key(name, key, digits)) /* with its NUL, so of the same length */
                return NOT_PLAIN;
            count_up(key, &digits);
        } else {
            if (*name == '$' || !is_new(text, first, name, (size_t)(end - name)))
                return NOT_PLAIN;
            Told told = put_string(text, name, end);
            if (told != WRITTEN)
                return told;
            if (!room(text, 1))
                return NO_MEMORY;
            text->bytes[text->size++] = ':';
        }
        Told told = put_value(text, kind, value, next, depth);
        if (told != WRITTEN)
            return told;
        if (!room(text, 96))
            return NO_MEMORY;
        at = next;
    }
    text->bytes[text->size++] = is_array ? ']' : '}';
    text->name_count = first;
    return WRITTEN;
}

/* The texts of values from `starts` to `ends`, which are all documents or all arrays, one after another, and where each
ends. None is written, so that it ends where it starts, of a value that is malformed, or that has, at any depth: a type
that is not in put_value(), a name with a dollar sign in front, a name twice, text that is not UTF-8, a double that is
not finite, a number that Python writes with an exponent, or very many names or levels. */
PyObject *json(PyObject *self, PyObject *args) {
    PyObject *data, *starts, *ends, *text_ends = NULL, *written = NULL, *result = NULL;
    int is_array;
    Input input;
    Text *text = NULL;
    if (!PyArg_ParseTuple(args, "OOOp", &data, &starts, &ends, &is_array) || take(&input, data, starts, ends, Py_None))
        return NULL;
    text = calloc(1, sizeof *text);
    text_ends = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(input.count * sizeof(int64_t)));
    if (!text || !text_ends) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t n = 0; n < input.count; n++) {
        size_t before = text->size;
        Told told = NOT_PLAIN;
        if (sound(&input, n))
            told = put_nested(text, is_array, input.bytes + nth(&input.starts, n),
                              input.bytes + nth(&input.ends, n), 1);
        if (told == NO_MEMORY) {
            PyErr_NoMemory();
            goto done;
        }
        if (told == NOT_PLAIN)
            text->size = before, text->name_count = 0;
        ((int64_t *)PyBytes_AsString(text_ends))[n] = (int64_t)text->size;
    }
    written = PyBytes_FromStringAndSize(text->bytes, (Py_ssize_t)text->size);
    result = written ? PyTuple_Pack(2, written, text_ends) : NULL;
done:
    if (text)
        free(text->bytes);
    free(text);
    Py_XDECREF(written), Py_XDECREF(text_ends);
    release(&input);
    return result;
}
