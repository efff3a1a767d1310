package plans

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/writ-mesh/writ/internal/atomicfile"
	"github.com/writ-mesh/writ/internal/service"
)

const (
	// keepLook is how often it is looked whether a table of Redis is to be kept,
	// defaultKeepEvery the least time between two times that one is: a large one has tens
	// of megabytes.
	keepLook         = time.Second
	defaultKeepEvery = time.Minute
)

// keptFile is where a table of Redis is kept, in Options.State.
func keptFile(table string) string { return "plans-" + table + Suffix }

// restore has the tables of Redis hold that were kept last, until Redis is read.
func (b *Book) restore() {
	// A process that died while it kept a table has left as much as the table has.
	if err := atomicfile.Sweep(b.options.State); err != nil {
		b.options.Log.Error("what was kept in part cannot be removed", slog.Any("error", err))
	}
	for _, name := range b.options.Tables {
		h := b.follow(name)
		table, at, err := b.kept(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil: // Redis will bring it
			b.options.Log.Error("kept plans cannot be used, waiting for Redis", slog.String("table", name), slog.Any("error", err))
		default:
			h.table.Store(table)
			h.current.Store(at.UnixNano())
			b.options.Log.Info("kept plans in force until Redis answers", slog.String("table", name), slog.Int("callers", table.callers), slog.Time("kept", at))
		}
	}
}

// kept reads a table that was kept, and when that was.
func (b *Book) kept(name string) (*Table, time.Time, error) {
	root, err := os.OpenRoot(b.options.State)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer func() { _ = root.Close() }()
	table, _, info, err := readFile(root, keptFile(name), b.options.MaxCallers, nil)
	if err != nil {
		return nil, time.Time{}, err
	}
	return table, info.ModTime(), nil
}

// keep keeps a table of Redis whenever it has changed, until ctx ends. Nobody waits for
// the disk.
func (b *Book) keep(ctx context.Context, h *Handle) error {
	kept, last := h.table.Load(), time.Time{}
	return service.Every(ctx, keepLook, func(now time.Time) {
		t := h.table.Load()
		if t == kept || now.Sub(last) < b.keepEvery {
			return
		}
		last = now
		err := atomicfile.Write(filepath.Join(b.options.State, keptFile(h.name)), t.text(), 0o600)
		if err != nil { // it holds all the same, and is tried again
			b.options.Log.ErrorContext(ctx, "plans cannot be kept", slog.String("table", h.name), slog.Any("error", err))
			return
		}
		kept = t
	})
}

// text is the table as a file has it.
func (t *Table) text() []byte {
	const word = len(wordCaller) + 24 // with spaces and what most have
	w := bytes.NewBuffer(make([]byte, 0, len(t.base.text)+word*t.callers+4096))
	line := append([]byte(nil), wordNumbers...)
	for _, column := range t.columns {
		line = append(append(line, ' '), column...)
	}
	w.Write(append(line, '\n'))
	names := make([]string, len(t.plans)) // of the plans that are still there
	for name, e := range t.byName {
		names[e] = name
	}
	for i, name := range names {
		if name != "" {
			_, _ = fmt.Fprintf(w, "%s %s%s\n", wordPlan, name, t.numbers(nil, entry(i))) //nolint:gosec // a few thousand
		}
	}
	switch {
	case t.fallback == refused:
		_, _ = fmt.Fprintln(w, wordDefault, wordRefuse)
	case t.fallback != nobody:
		_, _ = fmt.Fprintln(w, wordDefault, names[t.fallback])
	}
	caller := func(name []byte, e entry) {
		line = appendCaller(append(line[:0], wordCaller+" "...), name)
		if e&ownRow == 0 && names[e] != "" {
			line = append(append(line, ' '), names[e]...)
		} else {
			line = t.numbers(line, e)
		}
		w.Write(append(line, '\n'))
	}
	t.base.each(func(name []byte, e entry) {
		if _, otherwise := t.changed[string(name)]; !otherwise {
			caller(name, e)
		}
	})
	for name, e := range t.changed {
		if e != nobody {
			caller([]byte(name), e)
		}
	}
	return w.Bytes()
}

// appendCaller appends a caller's name as it stands in a file.
func appendCaller(line, name []byte) []byte {
	const escaped = "% #"
	for _, c := range name {
		if slices.Contains([]byte(escaped), c) {
			line = fmt.Appendf(line, "%%%02x", c)
			continue
		}
		line = append(line, c)
	}
	return line
}

// numbers appends the numbers of an entry, each behind a space.
func (t *Table) numbers(line []byte, e entry) []byte {
	rows := t.planned
	if e&ownRow != 0 {
		rows = t.own
	}
	n := len(t.columns)
	for _, number := range rows[int(e&^ownRow)*n:][:n] {
		line = strconv.AppendUint(append(line, ' '), uint64(number.Requests), 10)
		if number.Burst > 0 {
			line = strconv.AppendUint(append(line, ':'), uint64(number.Burst), 10)
		}
	}
	return line
}
