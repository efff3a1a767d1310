package kubetest

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/writ-mesh/writ/internal/proctest"
)

// Fake is a stand-in for the API of a cluster: service accounts, pods and Secrets, to
// be made, read, merge-patched, removed, listed in pages and watched. Tests that run by
// Both hold it to what the real one does; what befalls a cluster only it can do.
type Fake struct {
	// Cluster is how it is called.
	*Cluster

	mu      sync.Mutex
	version int
	objects map[string]object // by path
	history []happened
	// forgotten is the newest version that is not remembered any more.
	forgotten int
	changed   chan struct{}
	cut       chan struct{}
	refuse    func(*http.Request) int
	asked     map[string]int
	// told is up to which version each open watch was told.
	told map[*http.Request]int
}

// happened is one change.
type happened struct {
	version int
	kind    string // ADDED, MODIFIED or DELETED
	path    string
	object  object
}

// fakePage is how many objects a page of its lists has at most, so that there are
// several.
const fakePage = 2

// NewFake runs a stand-in until t ends.
func NewFake(t testing.TB) *Fake {
	t.Helper()
	f := &Fake{version: 100, objects: map[string]object{}, forgotten: 99, changed: make(chan struct{}), cut: make(chan struct{}), asked: map[string]int{}, told: map[*http.Request]int{}}
	s := httptest.NewTLSServer(f)
	t.Cleanup(s.Close)
	t.Cleanup(f.Cut)
	dir := t.TempDir()
	f.Cluster = &Cluster{URL: s.URL, CAFile: filepath.Join(dir, "ca.pem"), TokenFile: filepath.Join(dir, "token"), dir: dir}
	for path, data := range map[string][]byte{
		f.CAFile:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}),
		f.TokenFile: []byte(adminToken),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// Both runs a test with a stand-in, and with a real cluster where that was built: a
// shared one, so that each test has namespaces of its own.
func Both(t *testing.T, test func(t *testing.T, c *Cluster)) {
	t.Helper()
	t.Run("stand-in", func(t *testing.T) { test(t, NewFake(t).Cluster) })
	t.Run("real", func(t *testing.T) { test(t, Shared(t)) })
}

// Cut ends all watches.
func (f *Fake) Cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.cut)
	f.cut = make(chan struct{})
}

// Forget forgets what happened, as a cluster does after some minutes.
func (f *Fake) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.history, f.forgotten = nil, f.version
}

// Bookmark tells all watches the version of now, and returns when it was sent.
func (f *Fake) Bookmark(t testing.TB) {
	t.Helper()
	f.mu.Lock()
	f.version++
	version := f.version
	f.record("BOOKMARK", "", object{"metadata": object{"resourceVersion": strconv.Itoa(version)}})
	f.mu.Unlock()
	proctest.Until(t, budget, "the bookmark is sent", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, told := range f.told {
			if told < version {
				return false
			}
		}
		return true
	})
}

// Refuse has the requests refused for which status is not 0; nil refuses none.
func (f *Fake) Refuse(status func(*http.Request) int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = status
}

// Asked is how often there was such a request: a method, LIST, WATCH or "GET metadata
// of", and the kind of object, as in "PATCH secrets".
func (f *Fake) Asked(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[what]
}

// ServeHTTP implements http.Handler.
func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/api/v1/")
	parts := strings.Split(path, "/")
	// [namespaces NS] KIND [NAME]
	kind, single := parts[0], false
	if parts[0] == "namespaces" && len(parts) > 2 {
		kind, single = parts[2], len(parts) > 3
	}
	method := r.Method
	switch {
	case r.URL.Query().Get("watch") != "":
		method = "WATCH"
	case method == http.MethodGet && !single:
		method = "LIST"
	case method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata"):
		method = "GET metadata of"
	}
	f.mu.Lock()
	f.asked[method+" "+kind]++
	code := 0
	if f.refuse != nil {
		code = f.refuse(r)
	}
	f.mu.Unlock()
	switch {
	case r.Header.Get("Authorization") != "Bearer "+adminToken:
		refused(w, http.StatusUnauthorized, "Unauthorized")
	case strings.Contains(r.Header.Get("Accept"), "PartialObjectMetadataList") != (method == "LIST") && strings.Contains(r.Header.Get("Accept"), "PartialObjectMetadata"):
		refused(w, http.StatusNotAcceptable, "the type asked for is another than that of the answer")
	case code != 0:
		refused(w, code, "as the test wants it")
	case method == "WATCH":
		f.watch(w, r, path, kind)
	case method == "LIST":
		f.list(w, r, path, kind)
	default:
		f.one(w, r, path)
	}
}

func refused(w http.ResponseWriter, code int, message string) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object{"kind": "Status", "code": code, "message": message})
}

// meta is an object's metadata.
func meta(o object) object {
	m, _ := o["metadata"].(object)
	return m
}

// text is a value of it.
func text(o object, key string) string {
	s, _ := meta(o)[key].(string)
	return s
}

// seen is an object as a request wants it.
func seen(r *http.Request, o object) object {
	if strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata") {
		return object{"kind": "PartialObjectMetadata", "metadata": o["metadata"]}
	}
	return o
}

// in tells whether an object's path is in a collection, or in that of all namespaces.
func in(collection, kind, path string) bool {
	return strings.HasPrefix(path, collection+"/") || collection == kind && strings.Contains(path, "/"+kind+"/")
}

// fits tells whether an object fits the selectors of a request.
func fits(r *http.Request, o object) bool {
	if label := r.URL.Query().Get("labelSelector"); label != "" {
		key, value, _ := strings.Cut(label, "=")
		labels, _ := meta(o)["labels"].(object)
		return labels[key] == value
	}
	status, _ := o["status"].(object)
	phase, _ := status["phase"].(string)
	return !strings.Contains(r.URL.Query().Get("fieldSelector"), "status.phase!="+phase) || phase == ""
}

// record notes what happened. f.mu is held.
func (f *Fake) record(kind, path string, o object) {
	f.history = append(f.history, happened{f.version, kind, path, o})
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *Fake) list(w http.ResponseWriter, r *http.Request, path, kind string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var items []object
	for _, p := range slices.Sorted(maps.Keys(f.objects)) {
		if in(path, kind, p) && fits(r, f.objects[p]) {
			items = append(items, seen(r, f.objects[p]))
		}
	}
	version, from := f.version, 0
	if token := r.URL.Query().Get("continue"); token != "" {
		if _, err := fmt.Sscanf(token, "%d-%d", &version, &from); err != nil || version < f.forgotten {
			refused(w, http.StatusGone, "the provided continue parameter is too old")
			return
		}
	}
	end := min(from+fakePage, len(items))
	m := object{"resourceVersion": strconv.Itoa(version)}
	if end < len(items) {
		m["continue"] = fmt.Sprintf("%d-%d", version, end)
	}
	_ = json.NewEncoder(w).Encode(object{"kind": "List", "metadata": m, "items": items[min(from, end):end]})
}

func (f *Fake) watch(w http.ResponseWriter, r *http.Request, path, kind string) {
	from, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	f.mu.Lock()
	old, cut := from < f.forgotten, f.cut
	f.mu.Unlock()
	if err != nil {
		refused(w, http.StatusBadRequest, "invalid resource version")
		return
	}
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	if old {
		_ = json.NewEncoder(w).Encode(object{"type": "ERROR", "object": object{"kind": "Status", "code": http.StatusGone, "reason": "Expired", "message": "too old resource version"}})
		return
	}
	_ = out.Flush()
	known := map[string]bool{} // what fits a selector
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.told, r)
	}()
	f.mu.Lock()
	f.told[r] = from
	for p, o := range f.objects {
		known[p] = in(path, kind, p) && fits(r, o)
	}
	f.mu.Unlock()
	for {
		f.mu.Lock()
		changed := f.changed
		var news []happened
		for _, h := range f.history {
			if h.version > from {
				news = append(news, h)
				from = h.version
			}
		}
		f.mu.Unlock()
		for _, h := range news {
			if h.kind != "BOOKMARK" && !in(path, kind, h.path) {
				continue
			}
			fit := fits(r, h.object)
			is, was := fit && h.kind != "DELETED", known[h.path] || fit
			known[h.path] = is
			switch {
			case h.kind == "BOOKMARK" || is:
			case was:
				h.kind = "DELETED"
			default:
				continue
			}
			if err := json.NewEncoder(w).Encode(object{"type": h.kind, "object": seen(r, h.object)}); err != nil {
				return
			}
		}
		_ = out.Flush()
		f.mu.Lock()
		f.told[r] = from
		f.mu.Unlock()
		select {
		case <-r.Context().Done():
			return
		case <-cut:
			return
		case <-changed:
		}
	}
}

// one serves what is about one object.
func (f *Fake) one(w http.ResponseWriter, r *http.Request, path string) {
	var body object
	if r.Body != nil && r.Method != http.MethodGet && r.Method != http.MethodDelete {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			refused(w, http.StatusBadRequest, err.Error())
			return
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Method == http.MethodPost {
		f.create(w, path, body)
		return
	}
	o, ok := f.objects[path]
	if !ok {
		refused(w, http.StatusNotFound, path+" not found")
		return
	}
	switch r.Method {
	case http.MethodDelete:
		delete(f.objects, path)
		f.version++
		gone := merged(o, object{"metadata": object{"resourceVersion": strconv.Itoa(f.version)}})
		f.record("DELETED", path, gone)
		o = gone
	case http.MethodPatch:
		if v := text(body, "resourceVersion"); v != "" && v != text(o, "resourceVersion") {
			refused(w, http.StatusConflict, "the object has been modified")
			return
		}
		if r.Header.Get("Content-Type") != "application/merge-patch+json" {
			refused(w, http.StatusUnsupportedMediaType, "want a merge patch")
			return
		}
		f.version++
		o = merged(merged(o, body), object{"metadata": object{"resourceVersion": strconv.Itoa(f.version)}})
		f.objects[path] = o
		f.record("MODIFIED", path, o)
	}
	_ = json.NewEncoder(w).Encode(seen(r, o))
}

func (f *Fake) create(w http.ResponseWriter, path string, o object) {
	name := text(o, "name")
	path += "/" + name
	if _, is := f.objects[path]; is {
		refused(w, http.StatusConflict, name+" already exists")
		return
	}
	f.version++
	own := object{"resourceVersion": strconv.Itoa(f.version), "uid": fmt.Sprintf("uid-%d", f.version)}
	if parts := strings.Split(path, "/"); parts[0] == "namespaces" && len(parts) > 2 {
		own["namespace"] = parts[1]
	}
	o = merged(o, object{"metadata": own})
	f.objects[path] = o
	f.record("ADDED", path, o)
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(o)
}

// merged applies a merge patch (RFC 7396) and leaves both as they are.
func merged(o, patch object) object {
	out := maps.Clone(o)
	if out == nil {
		out = object{}
	}
	for k, v := range patch {
		switch change := v.(type) {
		case nil:
			delete(out, k)
		case object:
			inner, _ := out[k].(object)
			out[k] = merged(inner, change)
		default:
			out[k] = v
		}
	}
	return out
}
