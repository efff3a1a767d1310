package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/writ-mesh/writ/internal/kubeapi"
)

const (
	// pageSize is how many objects one page of a list has at most.
	pageSize = 500
	// watchLife is how long one watch lasts, and as long again at random: the token
	// of a watch is looked at when it begins only. watchGrace is what the server may
	// take longer.
	watchLife  = 4 * time.Minute
	watchGrace = 30 * time.Second
	// pauseMin and pauseMax bound the pause before the API is asked again after it
	// failed, and the first is that between two watches that end at once.
	pauseMin = 200 * time.Millisecond
	pauseMax = 30 * time.Second
)

var errExpired = errors.New("the API does not remember the version any more")

// board is told of changes by several watchers.
type board struct {
	mu sync.Mutex
	// next is closed at the next change.
	next chan struct{}
}

func newBoard() *board { return &board{next: make(chan struct{})} }

// changed is closed at the next change. Take it before looking at what changes.
func (b *board) changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.next
}

func (b *board) tell() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.next)
	b.next = make(chan struct{})
}

// watcher keeps the objects of one kind in one namespace, or in all: it lists them,
// watches from the version of the list on, goes on from the last version that it saw
// when a watch ends or breaks, and lists anew when the API has forgotten that.
type watcher struct {
	// listing and watching are how the API is called.
	listing, watching kubeapi.Client

	url   string
	query url.Values // selectors
	log   *slog.Logger
	board *board

	mu      sync.Mutex
	objects map[name]object
	// listed says that objects were all there were once, synced that they are now.
	listed, synced bool
	// said is the last failure in the log.
	said string
}

// run follows the objects until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	version, pause := "", pauseMin
	for {
		began := time.Now()
		next, err := w.once(ctx, version)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case err == nil && next != "":
			pause = pauseMin
		case expired(err):
			next, err = "", nil // a new list
		default:
			pause = min(2*pause, pauseMax)
		}
		version = next
		w.failed(ctx, err)
		if err == nil && time.Since(began) > pauseMin {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause/2 + rand.N(pause)): //nolint:gosec // spreads
		}
	}
}

// once lists the objects if there is no version yet, else watches from it. It returns
// the version that was seen last.
func (w *watcher) once(ctx context.Context, version string) (string, error) {
	if version == "" {
		return w.list(ctx)
	}
	return w.watch(ctx, version)
}

// list replaces all objects.
func (w *watcher) list(ctx context.Context) (string, error) {
	all := make(map[name]object)
	query := url.Values{"limit": {strconv.Itoa(pageSize)}}
	for k, v := range w.query {
		query[k] = v
	}
	for {
		data, err := w.listing.Call(ctx, http.MethodGet, w.url+"?"+query.Encode(), nil)
		if err != nil {
			return "", err
		}
		var l list
		if err := json.Unmarshal(data, &l); err != nil {
			return "", fmt.Errorf("GET %s: %w", w.url, err)
		}
		if l.Metadata.Version == "" {
			return "", fmt.Errorf("GET %s: the list has no version", w.url)
		}
		for _, o := range l.Items {
			all[o.name()] = o
		}
		if l.Metadata.Continue == "" {
			w.replace(all)
			return l.Metadata.Version, nil
		}
		query.Set("continue", l.Metadata.Continue)
	}
}

// watch takes changes until the watch ends.
func (w *watcher) watch(ctx context.Context, version string) (string, error) {
	life := watchLife + rand.N(watchLife) //nolint:gosec // spreads
	query := url.Values{
		"watch": {"true"}, "allowWatchBookmarks": {"true"}, "resourceVersion": {version},
		"timeoutSeconds": {strconv.Itoa(int(life.Seconds()))},
	}
	for k, v := range w.query {
		query[k] = v
	}
	ctx, cancel := context.WithTimeout(ctx, life+watchGrace)
	defer cancel()
	lines, err := w.watching.Watch(ctx, w.url+"?"+query.Encode())
	if err != nil {
		return version, err
	}
	w.sync(true)
	for line, err := range lines {
		if err != nil {
			return version, err
		}
		next, err := w.take(line)
		if err != nil {
			return version, err
		}
		version = next
	}
	return version, nil
}

// take does what one event says, and returns its version.
func (w *watcher) take(line []byte) (string, error) {
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		return "", fmt.Errorf("watch of %s: %w", w.url, err)
	}
	if e.Type == "ERROR" {
		var status struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		}
		if err := json.Unmarshal(e.Object, &status); err != nil {
			return "", fmt.Errorf("watch of %s: %w", w.url, err)
		}
		err := fmt.Errorf("watch of %s: %d %.300q", w.url, status.Code, status.Message)
		if status.Code == http.StatusGone {
			err = fmt.Errorf("%w: %w", errExpired, err)
		}
		return "", err
	}
	var o object
	if err := json.Unmarshal(e.Object, &o); err != nil {
		return "", fmt.Errorf("watch of %s: %w", w.url, err)
	}
	if o.Metadata.Version == "" {
		return "", fmt.Errorf("watch of %s: an event without a version", w.url)
	}
	switch e.Type {
	case "ADDED", "MODIFIED":
		w.put(o)
	case "DELETED":
		w.mu.Lock()
		delete(w.objects, o.name())
		w.mu.Unlock()
		w.board.tell()
	default: // BOOKMARK: there is nothing to do up to its version
	}
	return o.Metadata.Version, nil
}

func (w *watcher) put(o object) {
	w.mu.Lock()
	if w.objects == nil {
		w.objects = make(map[name]object)
	}
	w.objects[o.name()] = o
	w.mu.Unlock()
	w.board.tell()
}

// follows puts an object that is the next version after before, if that one is known.
func (w *watcher) follows(before string, o object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if known, is := w.objects[o.name()]; is && known.Metadata.Version == before {
		w.objects[o.name()] = o
	}
}

func (w *watcher) replace(all map[name]object) {
	w.mu.Lock()
	w.objects, w.listed, w.synced = all, true, true
	w.mu.Unlock()
	w.board.tell()
}

// sync notes whether the objects are those of now.
func (w *watcher) sync(is bool) {
	w.mu.Lock()
	changed := w.synced != is
	w.synced = is
	w.mu.Unlock()
	if changed {
		w.board.tell()
	}
}

// failed notes how the last attempt ended, in the log when that changes.
func (w *watcher) failed(ctx context.Context, err error) {
	text := ""
	if err != nil {
		text = err.Error()
		w.sync(false)
	}
	w.mu.Lock()
	said := w.said
	w.said = text
	w.mu.Unlock()
	switch {
	case err != nil && said == "":
		w.log.WarnContext(ctx, "the cluster cannot be followed, what was known stays; will try again", slog.String("url", w.url), slog.Any("error", err))
	case err == nil && said != "":
		w.log.InfoContext(ctx, "the cluster is followed again", slog.String("url", w.url))
	}
}

// state tells whether the objects were known once, and whether they are now.
func (w *watcher) state() (listed, synced bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.listed, w.synced
}

// each calls f with each object.
func (w *watcher) each(f func(name, object)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n, o := range w.objects {
		f(n, o)
	}
}
