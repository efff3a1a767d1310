package bundle

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/logging"
)

// opaLogger lets OPA's plugins log through slog. It never asks for details:
// OPA's client writes headers of requests into those.
type opaLogger struct {
	log *slog.Logger
	// bundle is the one that is spoken of; what OPA does not know of those that arrive is
	// not what it says.
	bundle   string
	arriving map[string]*arrival
}

// unsigned begins what OPA says of a bundle with keys that need not be signed.
const unsigned = "Keys are configured but no"

func (l opaLogger) Debug(string, ...any)          {}
func (l opaLogger) Info(format string, a ...any)  { l.log.Info(text(format, a)) }  //nolint:sloglint // OPA's texts
func (l opaLogger) Error(format string, a ...any) { l.log.Error(text(format, a)) } //nolint:sloglint // OPA's texts
func (l opaLogger) Warn(format string, a ...any) {
	if x := l.arriving[l.bundle]; x != nil && x.verify.SignatureRequired() && strings.HasPrefix(format, unsigned) {
		return
	}
	l.log.Warn(text(format, a)) //nolint:sloglint // OPA's texts
}
func (l opaLogger) GetLevel() logging.Level { return logging.Info }
func (l opaLogger) SetLevel(logging.Level)  {}
func (l opaLogger) WithFields(f map[string]any) logging.Logger {
	attrs := make([]any, 0, len(f))
	for k, v := range f {
		attrs = append(attrs, slog.Any(k, v))
	}
	l.log = l.log.With(attrs...)
	if name, ok := f["name"].(string); ok {
		l.bundle = name
	}
	return l
}

func text(format string, a []any) string {
	if len(a) == 0 {
		return format
	}
	return fmt.Sprintf(format, a...)
}

// console writes what OPA writes to its console (decision logs and status with
// `console: true`): a line of JSON each.
type console struct {
	mu     *sync.Mutex
	w      io.Writer
	fields map[string]any
}

func newConsole(w io.Writer) *console { return &console{mu: new(sync.Mutex), w: w} }

func (c *console) line(level, format string, a []any) {
	out := make(map[string]any, len(c.fields)+3)
	maps.Copy(out, c.fields)
	out["level"], out["msg"], out["time"] = level, text(format, a), time.Now().UTC().Format(time.RFC3339)
	b, err := json.Marshal(out)
	if err != nil {
		b, _ = json.Marshal(map[string]string{"level": "error", "msg": "this line cannot be written as JSON: " + err.Error()})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.w.Write(append(b, '\n'))
}

func (c *console) Debug(string, ...any)          {}
func (c *console) Info(format string, a ...any)  { c.line("info", format, a) }
func (c *console) Warn(format string, a ...any)  { c.line("warning", format, a) }
func (c *console) Error(format string, a ...any) { c.line("error", format, a) }
func (c *console) GetLevel() logging.Level       { return logging.Info }
func (c *console) SetLevel(logging.Level)        {}
func (c *console) WithFields(f map[string]any) logging.Logger {
	all := make(map[string]any, len(c.fields)+len(f))
	maps.Copy(all, c.fields)
	maps.Copy(all, f)
	return &console{mu: c.mu, w: c.w, fields: all}
}
