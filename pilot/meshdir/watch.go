package meshdir

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Times of watching.
const (
	// settleTime: editors write a file in several steps; wait until it is quiet.
	settleTime = 30 * time.Millisecond
	// settleMost bounds the wait under a constant stream of writes.
	settleMost = 300 * time.Millisecond
	// rescanEvery looks for changes that the kernel did not report (network file
	// systems, lost events, files that objects name outside of the directory).
	rescanEvery = 2 * time.Second
	// rescanAlone is the same where the kernel reports nothing at all.
	rescanAlone = 500 * time.Millisecond
)

// Watch tells when files may have changed, until ctx ends; then the channel is
// closed. Receivers call Read, which says whether something really did. The
// channel holds one signal: nothing is lost while the receiver is busy.
func (r *Reader) Watch(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	w := &watch{reader: r, out: out, every: rescanAlone}
	if events, err := fsnotify.NewWatcher(); err == nil {
		w.events, w.every = events, rescanEvery
		w.follow()
	}
	w.state = w.stat()
	go w.run(ctx)
	return out
}

type watch struct {
	reader *Reader
	out    chan struct{}
	// events is nil where the kernel gives no watches.
	events *fsnotify.Watcher
	every  time.Duration
	state  [sha256.Size]byte
}

// follow watches every folder, new ones included; those that are watched
// already stay so.
func (w *watch) follow() {
	if w.events == nil {
		return
	}
	_ = w.reader.folders(func(path string, entry fs.DirEntry) {
		if entry.IsDir() {
			_ = w.events.Add(path) // the rescan covers what cannot be watched
		}
	})
	if f := w.reader.options.InstancesFile; f != "" {
		_ = w.events.Add(filepath.Dir(f))
	}
}

// folders visits what is not hidden below the mesh directory, which may be a link to
// one: that is what the separator at the end is for.
func (r *Reader) folders(visit func(path string, entry fs.DirEntry)) error {
	dir := r.options.Dir + string(filepath.Separator)
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // Read reports what cannot be read
		}
		if path != dir && strings.HasPrefix(entry.Name(), ".") {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		visit(path, entry)
		return nil
	})
}

// stat sums up names, sizes and times, to notice changes cheaply.
func (w *watch) stat() (out [sha256.Size]byte) {
	h := sha256.New()
	_ = w.reader.folders(func(path string, _ fs.DirEntry) { addFile(h, path) })
	if f := w.reader.options.InstancesFile; f != "" {
		addFile(h, f)
	}
	for _, name := range w.reader.namedFiles() {
		addFile(h, name)
	}
	h.Sum(out[:0])
	return out
}

func addFile(h hash.Hash, path string) {
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		fmt.Fprintf(h, "%s\x00%d\x00%d\x00", path, info.Size(), info.ModTime().UnixNano())
	}
}

// Stamp sums up names, sizes and times of the configuration files of the mesh
// directory and of the instances as they are now. What programs write beside them
// is no part of it.
func (r *Reader) Stamp() (out [sha256.Size]byte) {
	h := sha256.New()
	_ = r.folders(func(path string, _ fs.DirEntry) {
		if name, err := filepath.Rel(r.options.Dir, path); err == nil && isConfiguration(filepath.ToSlash(name)) {
			addFile(h, path)
		}
	})
	if f := r.options.InstancesFile; f != "" {
		addFile(h, f)
	}
	h.Sum(out[:0])
	return out
}

// namedFiles lists the paths of the files that objects name.
func (r *Reader) namedFiles() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for name := range r.named {
		if !filepath.IsAbs(name) {
			name = filepath.Join(r.options.Dir, name)
		}
		out = append(out, name)
	}
	return out
}

func (w *watch) run(ctx context.Context) {
	defer close(w.out)
	var events chan fsnotify.Event
	var failures chan error
	if w.events != nil {
		defer w.events.Close()
		events, failures = w.events.Events, w.events.Errors
	}
	rescan := time.NewTicker(w.every)
	defer rescan.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			if w.relevant(e) {
				w.settle(ctx, events)
				w.signal()
			}
		case _, ok := <-failures: // events were lost, perhaps
			if !ok {
				failures = nil
				continue
			}
			w.signal()
		case <-rescan.C:
			if w.stat() != w.state {
				w.signal()
			}
		}
	}
}

// relevant leaves out what cannot change the configuration: access times, hidden
// files other than the instances, and the logs of a neighbouring state folder.
func (w *watch) relevant(e fsnotify.Event) bool {
	if e.Op == fsnotify.Chmod {
		return false
	}
	if e.Name == w.reader.options.InstancesFile {
		return true
	}
	name, err := filepath.Rel(w.reader.options.Dir, e.Name)
	if err != nil {
		return true
	}
	for part := range strings.SplitSeq(filepath.ToSlash(name), "/") {
		if strings.HasPrefix(part, ".") && part != "." {
			return false
		}
	}
	return true
}

// settle waits until the files have been quiet for a moment.
func (w *watch) settle(ctx context.Context, events <-chan fsnotify.Event) {
	quiet, most := time.NewTimer(settleTime), time.NewTimer(settleMost)
	defer quiet.Stop()
	defer most.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-quiet.C:
			return
		case <-most.C:
			return
		case _, ok := <-events:
			if !ok {
				return
			}
			quiet.Reset(settleTime)
		}
	}
}

func (w *watch) signal() {
	w.follow()
	w.state = w.stat()
	select {
	case w.out <- struct{}{}:
	default:
	}
}
