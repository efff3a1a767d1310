package meshdir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/writ-mesh/writ/pilot/model"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// labelSelector is how our policies choose workloads, as Istio's do.
type labelSelector struct {
	MatchLabels map[string]string `json:"matchLabels"`
}

func (s *labelSelector) labels() map[string]string {
	if s == nil {
		return nil
	}
	return s.MatchLabels
}

// duration is written as in Go: "1m", "24h".
type duration time.Duration

// UnmarshalJSON reads a quoted duration.
func (d *duration) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("want a duration such as 10s, 1m or 24h")
	}
	v, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("%q is not a duration: write for example 10s, 1m or 24h", shorten(text))
	}
	*d = duration(v)
	return nil
}

// quotaSpec is the specification of a QuotaPolicy.
type quotaSpec struct {
	Selector        *labelSelector `json:"selector"`
	Limits          []quotaLimit   `json:"limits"`
	Mode            string         `json:"mode"`
	WhenUnavailable string         `json:"whenUnavailable"`
}

type quotaLimit struct {
	Per      []string  `json:"per"`
	Requests *uint32   `json:"requests"`
	Every    *duration `json:"every"`
}

// regoSpec is the specification of a RegoPolicy.
type regoSpec struct {
	Selector *labelSelector `json:"selector"`
	Module   string         `json:"module"`
	// ModuleFile names a .rego file of the mesh directory in place of Module.
	ModuleFile      string      `json:"moduleFile"`
	Bundle          *regoBundle `json:"bundle"`
	Query           string      `json:"query"`
	Mode            string      `json:"mode"`
	WhenUnavailable string      `json:"whenUnavailable"`
}

type regoBundle struct {
	URL     string    `json:"url"`
	Refresh *duration `json:"refresh"`
}

// policyMode checks what all policies of ours have.
func (c *checker) policyMode(selector *labelSelector, mode, whenUnavailable string) {
	c.selector("spec.selector.matchLabels", selector.labels())
	if modes := []string{"enforce", "observe"}; mode != "" && !slices.Contains(modes, mode) {
		c.errorf("spec.mode", "unknown mode %q%s", shorten(mode), didYouMean(mode, modes))
	}
	if answers := []string{"Allow", "Deny"}; whenUnavailable != "" && !slices.Contains(answers, whenUnavailable) {
		c.errorf("spec.whenUnavailable", "unknown value %q%s", shorten(whenUnavailable), didYouMean(whenUnavailable, answers))
	}
}

func checkQuotaPolicy(c *checker) {
	s := c.object.spec.(*quotaSpec)
	c.policyMode(s.Selector, s.Mode, s.WhenUnavailable)
	if len(s.Limits) == 0 {
		c.errorf("spec.limits", "a QuotaPolicy needs at least one limit")
	}
	if n := len(s.Limits); n > configpb.MaxQuotaLimits {
		c.errorf("spec.limits", "%d limits are too many: a QuotaPolicy has at most %d; write several", n, configpb.MaxQuotaLimits)
	}
	for i, limit := range s.Limits {
		at := index("spec.limits", i)
		if limit.Requests == nil {
			c.errorf(at+".requests", "the number of requests is missing")
		}
		switch {
		case limit.Every == nil || *limit.Every <= 0:
			c.errorf(at+".every", "a duration above 0 is needed: write for example every: 1m")
		case limit.Every.value() < configpb.MinQuotaEvery || limit.Every.value() > configpb.MaxQuotaEvery:
			c.errorf(at+".every", "%s is not between %s and %.0fh", limit.Every.value(), configpb.MinQuotaEvery, configpb.MaxQuotaEvery.Hours())
		}
		for j, text := range limit.Per {
			if _, problem := parseDimension(text); problem != "" {
				c.errorf(index(at+".per", j), "%s", problem)
			} else if slices.Contains(limit.Per[:j], text) {
				c.errorf(index(at+".per", j), "%q is given twice", text)
			}
		}
	}
}

// parseDimension reads one entry of per; the second result says what is wrong.
func parseDimension(text string) (model.Dimension, string) {
	plain := []string{"source.principal", "source.namespace", "source.ip", "request.method", "request.path", "destination.service"}
	if slices.Contains(plain, text) {
		return model.Dimension{Text: text, Kind: text}, ""
	}
	name, rest, bracket := strings.Cut(text, "[")
	switch {
	case text == "":
		return model.Dimension{}, "an empty entry: remove it"
	case name == "request.headers" || name == "request.auth.claims":
		args := strings.Split(strings.TrimSuffix(rest, "]"), "][")
		nested := name == "request.auth.claims"
		if !bracket || !strings.HasSuffix(rest, "]") || slices.Contains(args, "") || len(args) > 1 && !nested ||
			strings.ContainsAny(strings.Join(args, ""), "[]") || !nested && !headerNameForm.MatchString(args[0]) {
			return model.Dimension{}, fmt.Sprintf("%q needs a name in brackets: %s[name]", shorten(text), name)
		}
		return model.Dimension{Text: text, Kind: name, Arg: strings.Join(args, ".")}, ""
	}
	for _, prefix := range []string{"source.", "request.", "destination.", "connection."} {
		if strings.HasPrefix(text, prefix) {
			known := append(plain, "request.headers[name]", "request.auth.claims[name]")
			return model.Dimension{}, "unknown dimension " + strconv.Quote(shorten(text)) + didYouMean(text, known)
		}
	}
	return model.Dimension{Text: text, Kind: "constant", Arg: text}, ""
}

func checkRegoPolicy(c *checker) {
	s := c.object.spec.(*regoSpec)
	c.policyMode(s.Selector, s.Mode, s.WhenUnavailable)
	sources := 0
	for _, given := range []bool{s.Module != "", s.ModuleFile != "", s.Bundle != nil} {
		if given {
			sources++
		}
	}
	if sources != 1 {
		c.errorf("spec", "give exactly one of module, moduleFile and bundle")
	}
	if s.Module != "" && strings.TrimSpace(s.Module) == "" {
		c.errorf("spec.module", "the module is empty")
	}
	if b := s.Bundle; b != nil {
		switch u, err := url.Parse(b.URL); {
		case err != nil || !slices.Contains([]string{"http", "https", "file"}, u.Scheme):
			c.errorf("spec.bundle.url", "%q is not an http, https or file URL", shorten(b.URL))
		case u.Scheme != "file" || u.Host != "" || !path.IsAbs(u.Path):
			// What authz refuses must not get into a revision.
			c.errorf("spec.bundle.url", "%q is not supported by this version: use file:///path of a folder or .tar.gz", shorten(b.URL))
		case c.missing(u.Path):
			c.errorf("spec.bundle.url", "there is no %q", shorten(u.Path))
		}
		if b.Refresh != nil && *b.Refresh <= 0 {
			c.errorf("spec.bundle.refresh", "must be above 0")
		}
	}
	if rest, ok := strings.CutPrefix(s.Query, "data."); !ok || rest == "" {
		c.errorf("spec.query", "%q is not a query: it begins with \"data.\", for example data.office.allow", shorten(s.Query))
	}
	if !c.failed() && s.Module != "" {
		c.compile("spec.module", s.Module, s.Query)
	}
}

// missing says that a file or folder is known not to be there.
func (c *checker) missing(name string) bool {
	if c.options.ReadFile == nil {
		return false
	}
	_, err := c.options.ReadFile(name)
	return errors.Is(err, fs.ErrNotExist)
}

// compile asks the caller's compiler, if there is one.
func (c *checker) compile(at, module, query string) {
	if c.options.CompileRego == nil {
		return
	}
	if err := c.options.CompileRego(c.object.meta.Namespace+"/"+c.object.meta.Name, module, query); err != nil {
		c.errorf(at, "does not compile: %s", strings.Join(strings.Fields(err.Error()), " "))
	}
}

func (d duration) value() time.Duration { return time.Duration(d) }
