/* The inner loops of decoding, compiled: where the values of many documents and arrays are, and copies of them.

Optional. What each function returns, numpy and plain Python compute as well, and the same tests hold both; see
native.py for who calls them. Bytes are never trusted: each size is checked before it is used, and what breaks a
rule is reported, not read. The rules of the BSON types are those of elements.py, handed over by set_rule(). */

#include "_native.h"

Rule RULES[256];

/* Steps are compared four at a time, and so many times before a name is looked up. */
enum { ABREAST = 4, TIMES = 2, BUCKETS = 4096, MAX_MOVES = 4096, AHEAD = 16 };

static PyObject *none(void) {
    Py_INCREF(Py_None);
    return Py_None;
}

/* --- arguments ----------------------------------------------------------------------------------------- */

void release(Input *input) {
    if (input->data.obj) PyBuffer_Release(&input->data);
    if (input->starts.obj) PyBuffer_Release(&input->starts);
    if (input->ends.obj) PyBuffer_Release(&input->ends);
    if (input->rows.obj) PyBuffer_Release(&input->rows);
}

static inline size_t count_of(const Py_buffer *buffer) { return (size_t)buffer->shape[0]; }

/* Values of one size, at any distance from each other. */
static int take_values(PyObject *from, Py_buffer *buffer) {
    if (PyObject_GetBuffer(from, buffer, PyBUF_STRIDES))
        return -1;
    if (buffer->ndim == 1)
        return 0;
    PyErr_SetString(PyExc_ValueError, "an array does not have one dimension");
    return -1;
}

static int take_ints(PyObject *from, Py_buffer *buffer) {
    if (take_values(from, buffer))
        return -1;
    if (buffer->itemsize == sizeof(int64_t) || buffer->itemsize == sizeof(int32_t))
        return 0;
    PyErr_SetString(PyExc_ValueError, "an array is not one of int32 or int64");
    return -1;
}

int take(Input *input, PyObject *data, PyObject *starts, PyObject *ends, PyObject *rows) {
    memset(input, 0, sizeof *input);
    if (PyObject_GetBuffer(data, &input->data, PyBUF_SIMPLE) || take_ints(starts, &input->starts) ||
        take_ints(ends, &input->ends) || (rows != Py_None && take_ints(rows, &input->rows))) {
        release(input);
        return -1;
    }
    input->bytes = input->data.buf;
    input->size = (size_t)input->data.len;
    input->has_rows = rows != Py_None;
    input->count = count_of(&input->starts);
    if (input->size > INT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "the buffer exceeds 2 GiB");
        release(input);
        return -1;
    }
    if (input->count != count_of(&input->ends) || (input->has_rows && input->count != count_of(&input->rows))) {
        PyErr_SetString(PyExc_ValueError, "starts, ends and rows differ in length");
        release(input);
        return -1;
    }
    return 0;
}

/* Whether a document or an array has these bounds. */
int sound(const Input *input, size_t n) {
    const int64_t start = nth(&input->starts, n), end = nth(&input->ends, n);
    return start >= 0 && end - start >= 5 && (uint64_t)end + PADDING <= input->size &&
        int32_at(input->bytes + start) == end - start && !input->bytes[end - 1];
}

/* --- what is found ------------------------------------------------------------------------------------- */

/* A value: to which group of values it belongs, and its bounds. Found in the order of the bytes, and taken apart by
group at the end, so that a scan writes in one place only, and little: what it writes is read once more. */
typedef struct {
    uint32_t group;
    int32_t at, stop;
} Value;

typedef struct {
    Value *values;
    size_t count, capacity;
    uint32_t *counts; /* of each group's values */
} Log;

static int grow(Log *log) {
    size_t capacity = log->capacity ? 2 * log->capacity : 4096;
    Value *values = realloc(log->values, capacity * sizeof *values);
    if (!values)
        return -1;
    log->values = values;
    log->capacity = capacity;
    return 0;
}

static inline int add(Log *log, uint32_t group, Byte *data, Byte *at, Byte *stop) {
    Value *value;
    if (log->count == log->capacity && grow(log))
        return -1;
    value = &log->values[log->count++];
    value->group = group;
    log->counts[group]++;
    value->at = (int32_t)(at - data);
    value->stop = (int32_t)(stop - data);
    return 0;
}

/* The values of one group as Python gets them, an entry for each: where it starts and ends, its row unless the group has
all of them, and if its type has a payload that, aligned to eight bytes and at least as many. Side by side, so that
hundreds of groups can be written to in turn; and small, for each is read again for its column. */
typedef struct {
    PyObject *entries;
    char *next;
    size_t count, width;
    int has_rows;
} Group;

static inline size_t aligned(size_t size) { return (size + 7) / 8 * 8; }

static int prepare(Group *group, size_t all) {
    group->has_rows = group->count != all;
    group->width = group->width && group->width < 8 ? 8 : group->width;
    const size_t ints = group->has_rows ? 12 : 8;
    const size_t size = group->width ? aligned(ints) + aligned(group->width) : ints;
    group->entries = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(group->count * size));
    group->next = group->entries ? PyBytes_AsString(group->entries) : NULL;
    return group->entries ? 0 : -1;
}

/* Append values to their groups. */
static inline void append_values(Group *groups, const Value *value, const Value *end, Byte *data, int32_t row,
                                 int32_t next) {
    for (; value < end; value++, row += next) {
        Group *group = &groups[value->group];
        const int32_t bounds[2] = {value->at, value->stop};
        char *entry = group->next;
        memcpy(entry, bounds, sizeof bounds);
        entry += sizeof bounds;
        if (group->has_rows) {
            memcpy(entry, &row, sizeof row);
            entry += group->width ? aligned(sizeof row) : sizeof row;
        }
        if (group->width == 8) {
            memcpy(entry, data + value->at, 8);
            entry += 8;
        } else if (group->width) {
            memcpy(entry, data + value->at, group->width);
            entry += aligned(group->width);
        }
        group->next = entry;
    }
}

/* Take what was found apart. Of the `count` rows of the input, each has the values from its `first` on; without `first`,
each value is a row. A group has a row at most once. */
static int distribute(const Log *log, const size_t *first, Group *groups, size_t group_count, const Input *input,
                      size_t count) {
    for (size_t n = 0; n < group_count; n++)
        if ((groups[n].count = log->counts[n]) && prepare(&groups[n], count))
            return -1;
    Py_BEGIN_ALLOW_THREADS
    if (!first)
        append_values(groups, log->values, log->values + log->count, input->bytes, 0, 1);
    for (size_t n = 0; first && n < count; n++)
        append_values(groups, log->values + first[n], log->values + first[n + 1], input->bytes,
                      (int32_t)row_of(input, n), 0);
    Py_END_ALLOW_THREADS
    return 0;
}

/* --- documents ----------------------------------------------------------------------------------------- */

/* What an element begins with: its type, its name and a NUL. */
typedef struct {
    unsigned char *bytes;
    size_t length;
    uint32_t hash, name; /* the name's number, which its types share */
    int32_t others;      /* the next one in the same bucket, or -1 */
} Header;

/* A header in the usual order of the fields: its first bytes, and all that it takes to get past its value. */
typedef struct {
    uint64_t words[2], masks[2];
    uint32_t header, name, length;
    Rule rule;
} Step;

typedef struct {
    int64_t row, name, length, at, stop;
    int kind;
} Loose;

typedef struct {
    const Input *input;
    Log log;
    Header *headers;
    Step *steps;
    int64_t *in_document; /* by name: the last document in which it occurred */
    size_t *first;        /* the number of values found before each document */
    int regular;          /* whether the last document had nearly all fields in the usual order */
    size_t header_count, max_headers, name_count, moves;
    int32_t buckets[BUCKETS];
    Loose *loose;
    size_t loose_count, loose_capacity;
    int64_t *odd;
    size_t odd_count;
} Scan;

static uint32_t hash_of(Byte *name, size_t length) {
    const uint64_t factor = 0x9E3779B97F4A7C15u;
    uint64_t hash = length * factor, word = 0;
    for (; length >= 8; name += 8, length -= 8) {
        hash = (hash ^ word_at(name)) * factor;
        hash ^= hash >> 29;
    }
    if (length) {
        memcpy(&word, name, length);
        hash = (hash ^ word) * factor;
    }
    return (uint32_t)(hash >> 32);
}

/* A new header, to be expected at this place from now on; -1 without memory. */
static int learn(Scan *scan, Byte *at, size_t length, uint32_t hash, int32_t name, size_t place) {
    Header *header = &scan->headers[scan->header_count];
    Step *step = &scan->steps[place];
    header->bytes = malloc(length);
    if (!header->bytes)
        return -1;
    memcpy(header->bytes, at, length);
    header->length = length;
    header->hash = hash;
    header->name = name < 0 ? (uint32_t)scan->name_count : (uint32_t)name;
    if (name < 0)
        scan->in_document[scan->name_count++] = -1;
    header->others = scan->buckets[hash % BUCKETS];
    scan->buckets[hash % BUCKETS] = (int32_t)scan->header_count;
    memmove(step + 1, step, (scan->header_count + ABREAST - place) * sizeof *step);
    for (size_t n = 0; n < 2; n++) {
        size_t size = length > 8 * n ? length - 8 * n : 0;
        step->masks[n] = size >= 8 ? ~(uint64_t)0 : ((uint64_t)1 << (8 * size)) - 1;
        step->words[n] = word_at(at + 8 * n) & step->masks[n];
    }
    step->header = (uint32_t)scan->header_count;
    step->name = header->name;
    step->length = (uint32_t)length;
    step->rule = RULES[*at];
    scan->header_count++;
    return 0;
}

/* The place after the step of a known header, which was not among the next ones after `place`. If it is behind them,
it is moved here: the documents that have few of the fields show their common order bit by bit. */
static size_t after(Scan *scan, size_t place, uint32_t header) {
    size_t found = place;
    while (found < scan->header_count && scan->steps[found].header != header)
        found++;
    if (found < scan->header_count)
        return found + 1;
    for (found = 0; scan->steps[found].header != header; found++)
        ;
    if (scan->moves == MAX_MOVES)
        return found + 1;
    Step step = scan->steps[found];
    memmove(&scan->steps[found], &scan->steps[found + 1], (place - 1 - found) * sizeof step);
    scan->steps[place - 1] = step;
    scan->moves++;
    return place;
}

/* Keep a value for whose header there is no room; 1 if the document has had this name before, -1 without memory. */
static int stay_loose(Scan *scan, size_t n, Byte *at, size_t length, int32_t name, Byte *stop) {
    const Input *input = scan->input;
    Byte *data = input->bytes;
    Loose *loose;
    if (name >= 0 && scan->in_document[name] == (int64_t)n)
        return 1;
    if (name >= 0)
        scan->in_document[name] = (int64_t)n;
    if (scan->loose_count == scan->loose_capacity) {
        size_t capacity = scan->loose_capacity ? 2 * scan->loose_capacity : 256;
        loose = realloc(scan->loose, capacity * sizeof *loose);
        if (!loose)
            return -1;
        scan->loose = loose;
        scan->loose_capacity = capacity;
    }
    loose = &scan->loose[scan->loose_count++];
    loose->row = row_of(input, n);
    loose->name = at + 1 - data;
    loose->length = (int64_t)length - 2;
    loose->kind = *at;
    loose->at = at + length - data;
    loose->stop = stop - data;
    return 0;
}

/* Whether the first sixteen bytes of an element differ from those of a step's header, as far as that goes. */
static inline int differ(const Step *step, uint64_t first, uint64_t second) {
    return (((first & step->masks[0]) ^ step->words[0]) | ((second & step->masks[1]) ^ step->words[1])) != 0;
}

/* Whether what follows those is the rest of the header. */
static inline int has_rest(const Scan *scan, const Step *step, Byte *at, Byte *last) {
    return step->length <= 16 || (step->length <= last - at &&
                                  !memcmp(at + 16, scan->headers[step->header].bytes + 16, step->length - 16));
}

/* The place of the step that an element begins with, among the next ones; -1 if none of these. */
static inline int64_t expected(const Scan *scan, size_t place, Byte *at, Byte *last) {
    const uint64_t first = word_at(at), second = word_at(at + 8);
    if (scan->regular && !differ(&scan->steps[place], first, second) && has_rest(scan, &scan->steps[place], at, last))
        return (int64_t)place; /* as predicted: what follows need not wait for the comparison */
    for (int times = 0; times < TIMES && place < scan->header_count; times++, place += ABREAST) {
        unsigned hits = 0;
        for (unsigned n = 0; n < ABREAST; n++) /* all of them: which one it is, no processor can predict */
            hits |= (unsigned)!differ(&scan->steps[place + n], first, second) << n;
        if (hits) {
            const size_t found = place + (size_t)__builtin_ctz(hits);
            return has_rest(scan, &scan->steps[found], at, last) ? (int64_t)found : -1;
        }
    }
    return -1;
}

/* Find the step of an element that was not expected, which is the one before `place` then; or keep the value as a loose
one, of which `past` is the end. 1 if a rule is broken, -1 without memory. */
static int look_up(Scan *scan, size_t n, Byte *at, Byte *last, size_t *place, Byte **past) {
    Byte *end = memchr(at + 1, 0, (size_t)(last - (at + 1)));
    int32_t name = -1, found;
    size_t length;
    uint32_t hash;
    if (!end)
        return 1;
    length = (size_t)(end + 1 - at);
    hash = hash_of(at + 1, length - 2);
    for (found = scan->buckets[hash % BUCKETS]; found >= 0; found = scan->headers[found].others) {
        const Header *header = &scan->headers[found];
        if (header->hash == hash && header->length == length && !memcmp(header->bytes + 1, at + 1, length - 1)) {
            if (header->bytes[0] == *at)
                break;
            name = (int32_t)header->name;
        }
    }
    if (found >= 0) {
        *place = after(scan, *place, (uint32_t)found);
    } else if (scan->header_count < scan->max_headers) {
        return learn(scan, at, length, hash, name, (*place)++);
    } else {
        *past = end_of(&RULES[*at], at + length, last);
        return *past ? stay_loose(scan, n, at, length, name, *past) : 1;
    }
    return 0;
}

/* Find the values of one document; 1 if it breaks a rule, -1 without memory. */
static int scan_document(Scan *scan, size_t n) {
    const Input *input = scan->input;
    Byte *data = input->bytes, *at = data + nth(&input->starts, n) + 4, *last = data + nth(&input->ends, n) - 1;
    size_t place = 0; /* the step that is expected */
    size_t elements = 0, jumps = 0;
    while (at < last) {
        const int64_t guess = expected(scan, place, at, last);
        Byte *past = NULL;
        jumps += guess != (int64_t)place;
        elements++;
        if (guess >= 0) {
            place = (size_t)guess + 1;
        } else {
            const int failed = look_up(scan, n, at, last, &place, &past);
            if (failed)
                return failed;
        }
        if (!past) {
            const Step *step = &scan->steps[place - 1];
            Byte *value = at + step->length;
            past = end_of(&step->rule, value, last);
            if (!past || scan->in_document[step->name] == (int64_t)n)
                return 1;
            scan->in_document[step->name] = (int64_t)n;
            if (add(&scan->log, step->header, data, value, past))
                return -1;
        }
        at = past;
    }
    scan->regular = 8 * jumps < elements;
    return 0;
}

static int is_text(Byte *name, size_t length) {
    PyObject *text = PyUnicode_DecodeUTF8((const char *)name, (Py_ssize_t)length, NULL);
    if (!text)
        PyErr_Clear();
    Py_XDECREF(text);
    return text != NULL;
}

static int append(PyObject *list, PyObject *item) {
    int failed = !item || PyList_Append(list, item);
    Py_XDECREF(item);
    return failed;
}

/* The headers' values and the loose ones, as Python has them. Rows with names that are not UTF-8 are odd. */
static int collect(Scan *scan, Group *groups, PyObject *found, PyObject *loose, PyObject *odd) {
    const Input *input = scan->input;
    Byte *data = input->bytes;
    for (size_t n = 0; n < scan->header_count; n++)
        groups[n].width = RULES[scan->headers[n].bytes[0]].payload;
    if (distribute(&scan->log, scan->first, groups, scan->header_count, input, input->count))
        return -1;
    for (size_t n = 0; n < scan->odd_count; n++)
        if (append(odd, PyLong_FromLongLong(scan->odd[n])))
            return -1;
    for (size_t n = 0; n < scan->header_count; n++) {
        const Header *header = &scan->headers[n];
        Group *group = &groups[n];
        if (!group->count)
            continue;
        if (is_text(header->bytes + 1, header->length - 2)) {
            if (append(found, Py_BuildValue("iy#iO", header->bytes[0], header->bytes + 1,
                                            (Py_ssize_t)header->length - 2, group->has_rows, group->entries)))
                return -1;
            continue;
        }
        for (size_t row = 0, value = 0; row < input->count; row++)
            for (; value < scan->first[row + 1]; value++)
                if (scan->log.values[value].group == n && append(odd, PyLong_FromLongLong(row_of(input, row))))
                    return -1;
    }
    for (size_t n = 0; n < scan->loose_count; n++) {
        const Loose *each = &scan->loose[n];
        if (!is_text(data + each->name, (size_t)each->length)) {
            if (append(odd, PyLong_FromLongLong(each->row)))
                return -1;
        } else if (append(loose, Py_BuildValue("Ly#iLL", each->row, data + each->name, (Py_ssize_t)each->length,
                                               each->kind, each->at, each->stop))) {
            return -1;
        }
    }
    return 0;
}

static Scan *new_scan(const Input *input, size_t max_headers) {
    Scan *scan = calloc(1, sizeof *scan);
    if (!scan)
        return NULL;
    scan->input = input;
    scan->max_headers = max_headers;
    scan->headers = malloc(max_headers * sizeof *scan->headers);
    scan->log.counts = calloc(max_headers, sizeof *scan->log.counts);
    scan->steps = malloc((max_headers + ABREAST + 1) * sizeof *scan->steps);
    scan->in_document = malloc(max_headers * sizeof *scan->in_document);
    scan->odd = malloc((input->count + 1) * sizeof *scan->odd);
    scan->first = malloc((input->count + 1) * sizeof *scan->first);
    memset(scan->buckets, -1, sizeof scan->buckets);
    for (size_t n = 0; scan->steps && n <= ABREAST; n++) /* behind the last step are some that match nothing */
        scan->steps[n] = (Step){.words = {1, 1}};
    return scan;
}

static void free_scan(Scan *scan) {
    for (size_t n = 0; n < scan->header_count; n++)
        free(scan->headers[n].bytes);
    free(scan->headers);
    free(scan->steps);
    free(scan->in_document);
    free(scan->log.values);
    free(scan->log.counts);
    free(scan->loose);
    free(scan->odd);
    free(scan->first);
    free(scan);
}

static PyObject *documents(PyObject *self, PyObject *args) {
    PyObject *data, *starts, *ends, *rows, *found = NULL, *loose = NULL, *odd = NULL, *result = NULL;
    Group *groups = NULL;
    Py_ssize_t max_headers;
    Input input;
    Scan *scan;
    int failed = 0;
    if (!PyArg_ParseTuple(args, "OOOOn", &data, &starts, &ends, &rows, &max_headers) ||
        take(&input, data, starts, ends, rows))
        return NULL;
    scan = new_scan(&input, (size_t)max_headers);
    if (!scan || !scan->log.counts || !scan->headers || !scan->steps || !scan->in_document || !scan->odd || !scan->first) {
        PyErr_NoMemory();
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    for (size_t n = 0; n < input.count && failed >= 0; n++) {
        scan->first[n] = scan->log.count;
        failed = sound(&input, n) ? scan_document(scan, n) : 1;
        if (failed > 0)
            scan->odd[scan->odd_count++] = row_of(&input, n);
    }
    scan->first[input.count] = scan->log.count;
    Py_END_ALLOW_THREADS
    groups = calloc(scan->header_count + 1, sizeof *groups);
    found = PyList_New(0);
    loose = PyList_New(0);
    odd = PyList_New(0);
    if (failed < 0 || !groups || !found || !loose || !odd)
        PyErr_NoMemory();
    else if (!collect(scan, groups, found, loose, odd))
        result = PyTuple_Pack(3, found, loose, odd);
done:
    if (groups)
        for (size_t n = 0; n < scan->header_count; n++)
            Py_XDECREF(groups[n].entries);
    free(groups);
    Py_XDECREF(found), Py_XDECREF(loose), Py_XDECREF(odd);
    if (scan)
        free_scan(scan);
    release(&input);
    return result;
}

/* --- arrays -------------------------------------------------------------------------------------------- */

/* Find the elements of one array, and return how many; -1 if it breaks a rule, -2 without memory. */
static int64_t scan_array(Log *log, const Input *input, size_t n) {
    Byte *data = input->bytes, *at = data + nth(&input->starts, n) + 4, *last = data + nth(&input->ends, n) - 1;
    char key[24] = "0";
    size_t length = 1;
    int64_t index = 0;
    while (at < last) {
        Byte *value = at + 2 + length, *stop;
        if (value > last || !is_key(at + 1, key, length) || !(stop = end_of(&RULES[*at], value, last)))
            return -1;
        if (add(log, *at, data, value, stop))
            return -2;
        index++;
        count_up(key, &length);
        at = stop;
    }
    return index;
}

static PyObject *arrays(PyObject *self, PyObject *args) {
    PyObject *data, *starts, *ends, *lengths = NULL, *found = NULL, *wrong = NULL, *result = NULL;
    Group groups[256] = {0};
    uint32_t counts[256] = {0};
    Log log = {.counts = counts};
    Input input;
    int64_t length = 0, total = 0, *length_of;
    if (!PyArg_ParseTuple(args, "OOO", &data, &starts, &ends) || take(&input, data, starts, ends, Py_None))
        return NULL;
    lengths = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(input.count * sizeof(int64_t)));
    found = PyList_New(0);
    wrong = PyList_New(0);
    if (!lengths || !found || !wrong)
        goto done;
    length_of = (int64_t *)PyBytes_AsString(lengths);
    Py_BEGIN_ALLOW_THREADS
    for (size_t n = 0; n < input.count && length > -2; n++) {
        size_t before = log.count;
        length_of[n] = length = sound(&input, n) ? scan_array(&log, &input, n) : -1;
        if (length < 0)
            while (log.count > before) /* without what was found in it */
                counts[log.values[--log.count].group]--;
        else
            total += length;
    }
    Py_END_ALLOW_THREADS
    if (length == -2) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t n = 0; n < input.count; n++)
        if (length_of[n] < 0) {
            length_of[n] = 0;
            if (append(wrong, PyLong_FromSize_t(n)))
                goto done;
        }
    for (int kind = 0; kind < 256; kind++)
        groups[kind].width = RULES[kind].payload;
    if (distribute(&log, NULL, groups, 256, &input, (size_t)total))
        goto done;
    for (int kind = 0; kind < 256; kind++) {
        Group *group = &groups[kind];
        if (group->count && append(found, Py_BuildValue("iiO", kind, group->has_rows, group->entries)))
            goto done;
    }
    result = PyTuple_Pack(3, lengths, found, wrong);
done:
    for (int kind = 0; kind < 256; kind++)
        Py_XDECREF(groups[kind].entries);
    free(log.values);
    Py_XDECREF(lengths), Py_XDECREF(found), Py_XDECREF(wrong);
    release(&input);
    return result;
}

/* --- columns ------------------------------------------------------------------------------------------- */

static int in_order(const Py_buffer *rows, size_t size, Py_ssize_t count) {
    int64_t before = -1;
    for (size_t n = 0; n < size; n++) {
        const int64_t row = nth(rows, n);
        if (row <= before || row >= count)
            return 0;
        before = row;
    }
    return 1;
}

static PyObject *zeros(size_t size) {
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (bytes)
        memset(PyBytes_AsString(bytes), 0, size);
    return bytes;
}

static inline void set_bit(char *bits, int64_t n) { bits[n >> 3] |= (char)(1 << (n & 7)); }

/* Copy a value, most often a short one, for which a call would take longer. */
static inline void copy(char *to, const char *room, Byte *from, Byte *end, size_t size) {
    if (size <= 16 && room - to >= 16 && end - from >= 16)
        memcpy(to, from, 16);
    else
        memcpy(to, from, size);
}

static PyObject *strings(PyObject *self, PyObject *args) {
    PyObject *data, *starts, *ends, *rows, *bits = NULL, *offsets = NULL, *bytes = NULL, *result = NULL;
    Py_ssize_t count, head, tail;
    Input input;
    int64_t total = 0;
    if (!PyArg_ParseTuple(args, "OOOOnnn", &data, &starts, &ends, &rows, &count, &head, &tail) ||
        take(&input, data, starts, ends, rows))
        return NULL;
    if (input.has_rows ? !in_order(&input.rows, input.count, count) : (Py_ssize_t)input.count != count) {
        PyErr_SetString(PyExc_ValueError, "rows are not in order");
        goto done;
    }
    for (size_t n = 0; n < input.count; n++) {
        const int64_t start = nth(&input.starts, n) + head, end = nth(&input.ends, n) - tail;
        if (start < 0 || end < start || (uint64_t)end > input.size) {
            PyErr_SetString(PyExc_ValueError, "a value is outside the buffer");
            goto done;
        }
        total += end - start;
        if (total > INT32_MAX) {
            PyErr_SetString(PyExc_OverflowError, "the values of a column exceed 2 GiB");
            goto done;
        }
    }
    bits = input.has_rows ? zeros(((size_t)count + 7) / 8) : none();
    offsets = PyBytes_FromStringAndSize(NULL, (count + 1) * (Py_ssize_t)sizeof(int32_t));
    bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)total);
    if (bits && offsets && bytes) {
        int32_t *offset = (int32_t *)PyBytes_AsString(offsets), position = 0;
        char *target = PyBytes_AsString(bytes), *bit = input.has_rows ? PyBytes_AsString(bits) : NULL;
        int64_t row = 0;
        Py_BEGIN_ALLOW_THREADS
        for (size_t n = 0; n < input.count; n++) {
            const int64_t start = nth(&input.starts, n) + head, here = row_of(&input, n);
            const int32_t size = (int32_t)(nth(&input.ends, n) - tail - start);
            if (n + AHEAD < input.count) /* the values of one column are far from each other */
                __builtin_prefetch(input.bytes + nth(&input.starts, n + AHEAD));
            while (row <= here)
                offset[row++] = position;
            copy(target + position, target + total, input.bytes + start, input.bytes + input.size, (size_t)size);
            position += size;
            if (bit)
                set_bit(bit, here);
        }
        while (row <= count)
            offset[row++] = position;
        Py_END_ALLOW_THREADS
        result = PyTuple_Pack(3, bits, offsets, bytes);
    }
done:
    Py_XDECREF(bits), Py_XDECREF(offsets), Py_XDECREF(bytes);
    release(&input);
    return result;
}

/* Copy values of `width` bytes to their rows; with a constant `width` that is a move each. */
static inline void scatter(char *target, char *bits, const Py_buffer *values, const Py_buffer *rows, size_t size,
                           size_t width) {
    for (size_t n = 0; n < size; n++) {
        const int64_t row = nth(rows, n);
        memcpy(target + (size_t)row * width, (char *)values->buf + (Py_ssize_t)n * values->strides[0], width);
        set_bit(bits, row);
    }
}

static PyObject *scattered(PyObject *self, PyObject *args) {
    PyObject *values, *rows, *bits = NULL, *bytes = NULL, *result = NULL;
    Py_buffer from = {0}, at = {0};
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "OOn", &values, &rows, &count))
        return NULL;
    if (take_values(values, &from) || take_ints(rows, &at))
        goto done;
    const size_t size = count_of(&at), width = (size_t)from.itemsize;
    if (count_of(&from) != size || !in_order(&at, size, count)) {
        PyErr_SetString(PyExc_ValueError, "rows are not in order, or differ from the values in length");
        goto done;
    }
    bits = zeros(((size_t)count + 7) / 8);
    bytes = zeros(width == 1 ? ((size_t)count + 7) / 8 : (size_t)count * width);
    if (!bits || !bytes)
        goto done;
    char *target = PyBytes_AsString(bytes), *bit = PyBytes_AsString(bits);
    switch (width) {
    case 1:
        for (size_t n = 0; n < size; n++) {
            const int64_t row = nth(&at, n);
            if (((char *)from.buf)[(Py_ssize_t)n * from.strides[0]])
                set_bit(target, row);
            set_bit(bit, row);
        }
        break;
    case 4: scatter(target, bit, &from, &at, size, 4); break;
    case 8: scatter(target, bit, &from, &at, size, 8); break;
    default: scatter(target, bit, &from, &at, size, width);
    }
    result = PyTuple_Pack(2, bits, bytes);
done:
    Py_XDECREF(bits), Py_XDECREF(bytes);
    if (from.obj) PyBuffer_Release(&from);
    if (at.obj) PyBuffer_Release(&at);
    return result;
}

/* --- a reply ------------------------------------------------------------------------------------------- */

static PyObject *offsets(PyObject *self, PyObject *args) {
    PyObject *data;
    Py_buffer buffer;
    Py_ssize_t start;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "On", &data, &start) || PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE))
        return NULL;
    Byte *bytes = buffer.buf, *at = bytes + start + 4, *end = NULL;
    int64_t count = 0, limit = 10, header = 3;
    size_t capacity = 0;
    int64_t *found = NULL;
    int fine = start >= 0 && start + 5 <= buffer.len;
    if (fine) {
        int32_t size = int32_at(bytes + start);
        fine = size >= 5 && size <= buffer.len - start;
        end = bytes + start + size - 1;
    }
    while (fine) {
        if ((size_t)count == capacity) {
            int64_t *more = realloc(found, (capacity = capacity ? 2 * capacity : 1024) * sizeof *found);
            if (!more) {
                free(found);
                PyBuffer_Release(&buffer);
                return PyErr_NoMemory();
            }
            found = more;
        }
        if (at == end) {
            found[count++] = at - bytes;
            break;
        }
        if (count == limit) {
            limit *= 10;
            header++;
        }
        at += header;
        fine = end - at >= 5 && int32_at(at) >= 5 && int32_at(at) <= end - at;
        if (fine) {
            found[count++] = at - bytes;
            at += int32_at(at);
        }
    }
    result = fine ? PyBytes_FromStringAndSize((const char *)found, (Py_ssize_t)(count * 8)) : none();
    free(found);
    PyBuffer_Release(&buffer);
    return result;
}

/* --- the module ---------------------------------------------------------------------------------------- */

static PyObject *set_rule(PyObject *self, PyObject *args) {
    int kind, base, sized, minimum, nul, payload;
    if (!PyArg_ParseTuple(args, "iiiiii", &kind, &base, &sized, &minimum, &nul, &payload))
        return NULL;
    RULES[kind & 0xFF] = (Rule){base, sized ? -1 : 0, minimum, nul ? 0xFF : 0, (unsigned char)payload, BASE_AND_SIZE};
    return none();
}

static PyObject *set_regex(PyObject *self, PyObject *kind) {
    const long regex = PyLong_AsLong(kind);
    if (PyErr_Occurred())
        return NULL;
    RULES[regex & 0xFF].size_by = TWO_STRINGS;
    return none();
}

static PyMethodDef methods[] = {
    {"set_rule", set_rule, METH_VARARGS, "Take a type's number, size or what to add to its leading int32, whether it "
     "has one, least size, whether it ends with a NUL, and the size of its payload."},
    {"set_regex", set_regex, METH_O, "Take the number of the type that is two C strings."},
    {"documents", documents, METH_VARARGS, "The values of documents, by type and name."},
    {"arrays", arrays, METH_VARARGS, "The elements of arrays, by type."},
    {"strings", strings, METH_VARARGS, "Copies of values of any size, without so many bytes at either end, as an "
     "Arrow array has them."},
    {"scattered", scattered, METH_VARARGS, "Values of one size at their rows, as an Arrow array has them: bits, if they "
     "are of one byte."},
    {"offsets", offsets, METH_VARARGS, "The start of each document of an array of documents, and the last one's end."},
    {"json", json, METH_VARARGS, "Documents or arrays as Extended JSON, but for those that are not plain."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", "Inner loops of decoding; see native.py.", -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&module); }
