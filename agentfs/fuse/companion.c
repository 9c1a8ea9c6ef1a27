/*
 * What pyfuse3 lacks of FUSE: file locks, lock owners of FLUSH and RELEASE, and answers that need no Python.
 *
 * pyfuse3 hands its table of operations to fuse_session_new. This module defines a function of that name; loaded before
 * pyfuse3, with its symbols global, it is the one that pyfuse3 calls. It copies the table, adds flock, setlk and getlk, puts
 * itself before init, destroy, flush, release and getxattr, and calls libfuse's own fuse_session_new.
 *
 * Everything here runs in the thread of pyfuse3's event loop with the GIL held: pyfuse3 calls fuse_session_process_buf and
 * fuse_session_destroy that way. That is all that protects the state below. companion.py says what callers may rely on.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#define FUSE_USE_VERSION 35
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/file.h>

/* From libfuse 3.17 on the name is a macro, around a function that takes the version of the headers too. */
#undef fuse_session_new
struct libfuse_version;

#define EXPORTED __attribute__((visibility("default")))
#define OPEN_MAX_TOKENS (1 << 16) /* Each is a thread that waits in the kernel. */
#define ABSENT_MAX 8
#define NAME_BYTES_MAX 255
#define LOCKS (FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS)

/* The names of capsules, so that a token of one kind is not answered as the other. */
static const char LOCK[] = "lock", TEST[] = "test";

static struct fuse_lowlevel_ops beneath;                          /* pyfuse3's own operations. */
static bool in_effect;                                            /* The kernel sends this session its locks. */
static PyObject *handle_lock, *handle_test, *handle_interrupted;  /* Callables, or NULL before install(). */
static PyObject *open_requests;                                   /* Token: capsule of a request, or None: its session is gone. */
static unsigned long long last_token;
static bool registering, interrupted_before;                      /* See watch_interrupt. */
static uint64_t flush_owner, release_owner;
static bool release_has_owner;
static char absent[ABSENT_MAX][NAME_BYTES_MAX + 1];
static Py_ssize_t absent_count;

/* ---- Tokens: what Python holds of a request, instead of a pointer that may be stale. */

static PyObject *open_token(fuse_req_t req, const char *kind)
{
    PyObject *token = PyLong_FromUnsignedLongLong(++last_token);
    PyObject *capsule = PyCapsule_New(req, kind, NULL);
    if (token && capsule && PyDict_SetItem(open_requests, token, capsule) < 0)
        Py_CLEAR(token);
    if (!capsule)
        Py_CLEAR(token);
    Py_XDECREF(capsule);
    return token;
}

static bool is_open(PyObject *token)
{
    return PyDict_GetItemWithError(open_requests, token) != NULL;
}

/* Close a token of this kind (of any kind: NULL) and give its request: NULL if there is none to answer, or with an error set. */
static fuse_req_t close_token(PyObject *token, const char *kind)
{
    PyObject *capsule = PyDict_GetItemWithError(open_requests, token);
    fuse_req_t req = NULL;
    if (!capsule) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_AssertionError, "token %S is not open", token);
        return NULL;
    }
    if (capsule != Py_None) {
        if (kind && !PyCapsule_IsValid(capsule, kind)) {
            PyErr_Format(PyExc_AssertionError, "token %S is not that of a %s", token, kind);
            return NULL;
        }
        req = PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule));
    }
    return PyDict_DelItem(open_requests, token) < 0 ? NULL : req;
}

/* A handler raised: say so, and let no process wait for an answer that may never come. */
static void give_up(PyObject *handler, PyObject *token)
{
    fuse_req_t req;
    PyErr_WriteUnraisable(handler);
    req = is_open(token) ? close_token(token, NULL) : NULL;
    if (req)
        fuse_reply_err(req, EIO);
}

static void tell_interrupted(PyObject *token)
{
    PyObject *done = PyObject_CallFunction(handle_interrupted, "O", token);
    if (!done)
        give_up(handle_interrupted, token);
    Py_XDECREF(done);
}

static void on_interrupt(fuse_req_t req, void *data)
{
    (void)req;
    if (registering) {
        interrupted_before = true;
        return;
    }
    PyObject *token = PyLong_FromUnsignedLongLong((uintptr_t)data);
    if (token)
        tell_interrupted(token);
    else
        PyErr_WriteUnraisable(handle_interrupted);
    Py_XDECREF(token);
}

/*
 * Have Python told when the request is interrupted. If that happened before, libfuse calls back from within the registration
 * and touches the request afterwards, so Python, which may answer at once, is told only when that is over. A later call from
 * libfuse holds a reference to the request: there Python may answer.
 */
static void watch_interrupt(fuse_req_t req, PyObject *token)
{
    registering = true;
    interrupted_before = false;
    fuse_req_interrupt_func(req, on_interrupt, (void *)(uintptr_t)PyLong_AsUnsignedLongLong(token));
    registering = false;
    if (interrupted_before)
        tell_interrupted(token);
}

/* ---- Operations that pyfuse3 lacks. */

struct question {
    PyObject *handler;
    const char *kind;
    int type;
    long long first, last; /* Inclusive. */
    pid_t pid;
    bool is_flock, waits;
};

static void ask(fuse_req_t req, fuse_ino_t ino, const struct fuse_file_info *fi, const struct question *asked)
{
    bool served = asked->handler && PyDict_Size(open_requests) < OPEN_MAX_TOKENS;
    PyObject *token = served ? open_token(req, asked->kind) : NULL;
    if (!token) {
        if (PyErr_Occurred())
            PyErr_WriteUnraisable(asked->handler);
        fuse_reply_err(req, ENOLCK);
        return;
    }
    PyObject *done = PyObject_CallFunction(
        asked->handler, "OKKKOiLLiO", token, (unsigned long long)ino, (unsigned long long)fi->fh,
        (unsigned long long)fi->lock_owner, asked->is_flock ? Py_True : Py_False, asked->type, asked->first, asked->last,
        (int)asked->pid, asked->waits ? Py_True : Py_False);
    if (!done)
        give_up(asked->handler, token);
    else if (asked->waits && is_open(token))
        watch_interrupt(req, token);
    Py_XDECREF(done);
    Py_DECREF(token);
}

static struct question question_of(fuse_req_t req, const struct flock *lock)
{
    return (struct question){
        .type = lock->l_type,
        .first = lock->l_start,
        .last = lock->l_len ? lock->l_start + lock->l_len - 1 : INT64_MAX,
        /* The kernel names no process in an unlock. */
        .pid = lock->l_pid ? lock->l_pid : fuse_req_ctx(req)->pid,
    };
}

static void on_setlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock, int sleep)
{
    struct question asked = question_of(req, lock);
    asked.handler = handle_lock;
    asked.kind = LOCK;
    asked.waits = sleep && lock->l_type != F_UNLCK;
    ask(req, ino, fi, &asked);
}

static void on_getlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock)
{
    struct question asked = question_of(req, lock);
    asked.handler = handle_test;
    asked.kind = TEST;
    ask(req, ino, fi, &asked);
}

static void on_flock(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, int op)
{
    int mode = op & ~LOCK_NB;
    struct question asked = {
        .handler = handle_lock,
        .kind = LOCK,
        .type = mode == LOCK_SH ? F_RDLCK : mode == LOCK_EX ? F_WRLCK : F_UNLCK,
        .last = INT64_MAX,
        .pid = fuse_req_ctx(req)->pid,
        .is_flock = true,
        .waits = !(op & LOCK_NB) && mode != LOCK_UN,
    };
    ask(req, ino, fi, &asked);
}

/* ---- Operations of pyfuse3, and what it would not say of them. */

static void on_init(void *userdata, struct fuse_conn_info *conn)
{
    if (beneath.init)
        beneath.init(userdata, conn);
    in_effect = (conn->capable & LOCKS) == LOCKS;
    if (in_effect)
        conn->want |= LOCKS;
}

/* libfuse frees the session next and with it what a reply needs, so requests are dropped here; the kernel ends them itself. */
static void on_destroy(void *userdata)
{
    PyObject *token, *capsule;
    Py_ssize_t at = 0;
    while (PyDict_Next(open_requests, &at, &token, &capsule)) {
        if (capsule == Py_None)
            continue;
        fuse_reply_none(PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule)));
        PyDict_SetItem(open_requests, token, Py_None);
    }
    in_effect = false;
    if (beneath.destroy)
        beneath.destroy(userdata);
}

static void on_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    flush_owner = fi->lock_owner;
    beneath.flush(req, ino, fi);
}

static void on_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    release_has_owner = fi->flock_release;
    release_owner = fi->lock_owner;
    beneath.release(req, ino, fi);
}

static void on_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    for (Py_ssize_t at = 0; at < absent_count; at++)
        if (strcmp(name, absent[at]) == 0) {
            fuse_reply_err(req, ENODATA);
            return;
        }
    beneath.getxattr(req, ino, name, size);
}

/* ---- The functions that pyfuse3 calls in place of libfuse's. */

static bool extend(const struct fuse_lowlevel_ops *given, size_t size, struct fuse_lowlevel_ops *extended)
{
    if (size > sizeof *extended) {
        fuse_log(FUSE_LOG_ERR, "agentfs: pyfuse3 was built with newer headers of libfuse than the companion\n");
        return false;
    }
    memset(extended, 0, sizeof *extended);
    memcpy(extended, given, size);
    /* libfuse may call one of these functions from the other. */
    if (extended->flock == on_flock)
        return true;
    beneath = *extended;
    in_effect = false;
    extended->init = on_init;
    extended->destroy = on_destroy;
    extended->flock = on_flock;
    extended->setlk = on_setlk;
    extended->getlk = on_getlk;
    extended->flush = beneath.flush ? on_flush : NULL;
    extended->release = beneath.release ? on_release : NULL;
    extended->getxattr = beneath.getxattr ? on_getxattr : NULL;
    return true;
}

EXPORTED struct fuse_session *fuse_session_new(
    struct fuse_args *args, const struct fuse_lowlevel_ops *given, size_t size, void *userdata)
{
    struct fuse_session *(*next)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);
    struct fuse_lowlevel_ops extended;
    *(void **)&next = dlsym(RTLD_NEXT, "fuse_session_new");
    return next && extend(given, size, &extended) ? next(args, &extended, sizeof extended, userdata) : NULL;
}

EXPORTED struct fuse_session *fuse_session_new_versioned(
    struct fuse_args *args, const struct fuse_lowlevel_ops *given, size_t size, struct libfuse_version *version, void *userdata)
{
    struct fuse_session *(*next)(
        struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, struct libfuse_version *, void *);
    struct fuse_lowlevel_ops extended;
    *(void **)&next = dlsym(RTLD_NEXT, "fuse_session_new_versioned");
    return next && extend(given, size, &extended) ? next(args, &extended, sizeof extended, version, userdata) : NULL;
}

/* ---- What companion.py calls. */

static void replace(PyObject **place, PyObject *object)
{
    PyObject *former = *place;
    *place = Py_NewRef(object);
    Py_XDECREF(former);
}

static PyObject *install(PyObject *module, PyObject *args)
{
    PyObject *lock, *test, *interrupted;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOO", &lock, &test, &interrupted))
        return NULL;
    replace(&handle_lock, lock);
    replace(&handle_test, test);
    replace(&handle_interrupted, interrupted);
    Py_RETURN_NONE;
}

/* A reply that fails is of no interest: the kernel has ended the request, or the mount is gone. */
static PyObject *answer(PyObject *module, PyObject *args)
{
    PyObject *token;
    int error;
    (void)module;
    if (!PyArg_ParseTuple(args, "Oi", &token, &error))
        return NULL;
    /* Without an error a test is answered with a lock. */
    fuse_req_t req = close_token(token, error ? NULL : LOCK);
    if (PyErr_Occurred())
        return NULL;
    bool unasked = req && error == EINTR && !fuse_req_interrupted(req);
    if (req)
        fuse_reply_err(req, unasked ? EIO : error);
    if (unasked)
        return PyErr_Format(PyExc_AssertionError, "EINTR for token %S, which was not interrupted", token);
    Py_RETURN_NONE;
}

static PyObject *answer_test(PyObject *module, PyObject *args)
{
    PyObject *token;
    int type, pid;
    long long first, last;
    (void)module;
    if (!PyArg_ParseTuple(args, "OiLLi", &token, &type, &first, &last, &pid))
        return NULL;
    fuse_req_t req = close_token(token, TEST);
    if (PyErr_Occurred())
        return NULL;
    struct flock lock = {
        .l_type = (short)type,
        .l_whence = SEEK_SET,
        .l_start = first,
        .l_len = last == INT64_MAX ? 0 : last - first + 1,
        .l_pid = pid,
    };
    if (req)
        fuse_reply_lock(req, &lock);
    Py_RETURN_NONE;
}

static PyObject *answer_absent(PyObject *module, PyObject *names)
{
    char kept[ABSENT_MAX][NAME_BYTES_MAX + 1] = {{0}};
    Py_ssize_t count = PyTuple_Size(names);
    (void)module;
    if (count > ABSENT_MAX)
        return PyErr_Format(PyExc_ValueError, "more than %d names", ABSENT_MAX);
    for (Py_ssize_t at = 0; at < count; at++) {
        char *name = PyBytes_AsString(PyTuple_GetItem(names, at));
        if (!name)
            return NULL;
        if (strlen(name) > NAME_BYTES_MAX)
            return PyErr_Format(PyExc_ValueError, "a name of more than %d bytes", NAME_BYTES_MAX);
        strcpy(kept[at], name);
    }
    memcpy(absent, kept, sizeof absent);
    absent_count = count;
    Py_RETURN_NONE;
}

static PyObject *get_flush_owner(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(flush_owner);
}

static PyObject *get_release_owner(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    if (!release_has_owner)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(release_owner);
}

static PyObject *is_in_effect(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return PyBool_FromLong(in_effect);
}

static PyMethodDef methods[] = {
    {"install", install, METH_VARARGS, NULL},
    {"answer", answer, METH_VARARGS, NULL},
    {"answer_test", answer_test, METH_VARARGS, NULL},
    {"answer_absent", answer_absent, METH_VARARGS, NULL},
    {"flush_owner", get_flush_owner, METH_NOARGS, NULL},
    {"release_owner", get_release_owner, METH_NOARGS, NULL},
    {"is_in_effect", is_in_effect, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_companion", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__companion(void)
{
    open_requests = PyDict_New();
    return open_requests ? PyModule_Create(&definition) : NULL;
}
