package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"

	"github.com/writ-mesh/writ/pilot/meshdir"
	pilotpb "github.com/writ-mesh/writ/proto/writ/pilot/v1"
)

// count gives "1 error", "2 errors".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// problemLine is a problem as every command prints it: "error" or "warning",
// where, what, and what is in force instead. dir is as the user wrote it.
func problemLine(dir string, p *pilotpb.Problem) string {
	parts := []string{p.GetSeverity()}
	file := p.GetFile()
	if file != "" && !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	switch {
	case file != "" && p.GetLine() > 0:
		parts = append(parts, fmt.Sprintf("%s:%d", file, p.GetLine()))
	case file != "":
		parts = append(parts, file)
	}
	for _, s := range []string{p.GetObject(), p.GetField()} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	line := strings.Join(append(parts, p.GetMessage()), ": ")
	switch p.GetInForce() {
	case meshdir.InForceEarlier:
		line += "; what was there before stays in force"
	case meshdir.InForceNothing:
		line += "; not in force: it has no earlier content"
	}
	return line
}

func problemOf(p meshdir.Problem) *pilotpb.Problem {
	return &pilotpb.Problem{
		File: p.File, Line: uint32(max(p.Line, 0)), Object: p.Object, Field: p.Field, //nolint:gosec // a line number
		Message: p.Message, Severity: p.Severity.String(), InForce: p.InForce,
	}
}

// terminal is a slog.Handler for people: "warning: what happened (key=value ...)".
type terminal struct {
	w     io.Writer
	mu    *sync.Mutex
	level slog.Leveler
	attrs []slog.Attr
}

func newTerminal(w io.Writer, level slog.Leveler) *terminal {
	return &terminal{w: w, mu: new(sync.Mutex), level: level}
}

// Enabled implements slog.Handler.
func (t *terminal) Enabled(_ context.Context, l slog.Level) bool { return l >= t.level.Level() }

// Handle implements slog.Handler.
func (t *terminal) Handle(_ context.Context, r slog.Record) error {
	kind := "warning"
	if r.Level >= slog.LevelError {
		kind = "error"
	}
	var all []string
	add := func(a slog.Attr) bool {
		value := a.Value.Resolve().String()
		if strings.ContainsAny(value, " \t\n\"") {
			value = fmt.Sprintf("%q", value)
		}
		all = append(all, a.Key+"="+value)
		return true
	}
	r.Attrs(add)
	for _, a := range t.attrs {
		add(a)
	}
	line := kind + ": " + r.Message
	if len(all) > 0 {
		line += " (" + strings.Join(all, " ") + ")"
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := fmt.Fprintln(t.w, line)
	return err
}

// WithAttrs implements slog.Handler.
func (t *terminal) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := *t
	out.attrs = append(append([]slog.Attr{}, t.attrs...), attrs...)
	return &out
}

// WithGroup implements slog.Handler; groups are not shown.
func (t *terminal) WithGroup(string) slog.Handler { return t }
