package descriptors

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long a folder must be quiet before it is read: an editor
	// writes a file in several steps.
	settle = 100 * time.Millisecond
	// rescan is how often the folder is read without a sign of change, for file
	// systems that give none.
	rescan = 30 * time.Second
)

// Watcher reads a folder again whenever it changes.
type Watcher struct {
	dir     string
	merge   bool
	current *Set
	notify  *fsnotify.Watcher
	// signature is the fingerprint of what was loaded last.
	signature [sha256.Size]byte
}

// NewWatcher watches a folder from now on; merge is as for Load. Call Load next, then
// Run or Close.
func NewWatcher(dir string, merge bool) (*Watcher, error) {
	n, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	w := &Watcher{dir: dir, merge: merge, notify: n}
	if err := w.addFolders(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return w, nil
}

// Load reads the folder for the first time; see the function of that name.
func (w *Watcher) Load() (*Set, error) {
	// Before reading: what changes meanwhile is then seen as a change.
	w.signature, _ = fingerprint(w.dir)
	set, err := Load(w.dir, w.current, w.merge)
	w.current = set
	return set, err
}

// Close ends a watcher that is not run.
func (w *Watcher) Close() error { return w.notify.Close() }

// addFolders watches the folder and its subfolders; watching one twice is nothing.
func (w *Watcher) addFolders() error {
	err := filepath.WalkDir(w.dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil || !e.IsDir():
			return err
		case path != w.dir && strings.HasPrefix(e.Name(), "."):
			return filepath.SkipDir
		}
		return w.notify.Add(path)
	})
	if err != nil {
		return fmt.Errorf("watch %s: %w", w.dir, err)
	}
	return nil
}

// Run calls take with the set in force and the mistakes found, after each change
// and until ctx ends.
func (w *Watcher) Run(ctx context.Context, take func(*Set, error)) error {
	defer func() { _ = w.notify.Close() }()
	timer := time.NewTimer(rescan)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.notify.Events:
			timer.Reset(settle)
			continue
		case <-w.notify.Errors: // an overflow: something changed
			timer.Reset(settle)
			continue
		case <-timer.C:
		}
		timer.Reset(rescan)
		_ = w.addFolders() // a folder that is gone is reported by Load
		now, err := fingerprint(w.dir)
		if err == nil && now == w.signature {
			continue
		}
		take(w.Load())
	}
}
