// Package check runs the requests of a checks.yaml against a running mesh and
// compares what comes back with what is expected. It is behind `writ check`.
package check

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/writ-mesh/writ/internal/config"
)

// File is the content of a checks.yaml.
type File struct {
	Checks []Check `yaml:"checks"`
}

// Check is one request, or a row of the same, with its expected outcome. Exactly
// one of From, Gateway and Direct says where it comes from.
type Check struct {
	Name string `yaml:"name"`
	// From is the workload that calls, through its sidecar.
	From string `yaml:"from"`
	// Gateway is the gateway that is called from outside.
	Gateway string `yaml:"gateway"`
	// Direct is the workload whose port is called past every proxy, as a caller
	// without a certificate would.
	Direct string `yaml:"direct"`
	// Repeat sends the request so many times; the last answer counts. 0 is once.
	Repeat  int     `yaml:"repeat"`
	Request Request `yaml:"request"`
	Expect  Expect  `yaml:"expect"`
}

// Request is what is sent.
type Request struct {
	// Method is GET unless said otherwise.
	Method string `yaml:"method"`
	// URL is the whole URL for From; Path is enough for Gateway and Direct.
	URL     string            `yaml:"url"`
	Path    string            `yaml:"path"`
	Headers map[string]string `yaml:"headers"`
	Body    string            `yaml:"body"`
	// Bearer is a file with a token, beside checks.yaml.
	Bearer string `yaml:"bearer"`
}

// Expect is what should come back. What is left out is not compared.
type Expect struct {
	Status int `yaml:"status"`
	// Body must stand in the answer.
	Body    string            `yaml:"body"`
	Headers map[string]string `yaml:"headers"`
	// DeniedBy begins the name of the rule that refuses, as in x-writ-denied-by.
	DeniedBy string `yaml:"deniedBy"`
	// Refused says that no HTTP answer comes at all.
	Refused bool `yaml:"refused"`
}

// Load reads and checks a checks.yaml.
func Load(path string) (*File, error) {
	f := new(File)
	if err := config.Load(path, f); err != nil {
		return nil, err
	}
	if len(f.Checks) == 0 {
		return nil, fmt.Errorf("%s: there are no checks in it", path)
	}
	var all []error
	for i := range f.Checks {
		if err := f.Checks[i].validate(filepath.Dir(path)); err != nil {
			all = append(all, fmt.Errorf("%s: checks[%d] %q: %w", path, i, f.Checks[i].Name, err))
		}
	}
	return f, errors.Join(all...)
}

func (c *Check) validate(dir string) error {
	sources := slices.DeleteFunc([]string{c.From, c.Gateway, c.Direct}, func(s string) bool { return s == "" })
	switch {
	case c.Name == "":
		return errors.New("it needs a name")
	case len(sources) != 1:
		return errors.New("exactly one of from, gateway and direct says where the request comes from")
	case c.From != "" && c.Request.URL == "":
		return errors.New("request.url is needed with from, for example http://ratings:9080/ratings/0")
	case c.From == "" && c.Request.Path == "":
		return errors.New("request.path is needed, for example /productpage")
	case c.Expect.Refused == (c.Expect.Status != 0):
		return errors.New("expect.status or expect.refused is needed, and not both")
	case c.Repeat < 0 || c.Repeat > 10000:
		return errors.New("repeat lies between 0 and 10000")
	}
	if b := c.Request.Bearer; b != "" {
		if !filepath.IsLocal(b) {
			return fmt.Errorf("request.bearer %q: want a file beside checks.yaml", b)
		}
		c.Request.Bearer = filepath.Join(dir, b)
		if _, err := os.Stat(c.Request.Bearer); err != nil {
			return fmt.Errorf("request.bearer: %w", err)
		}
	}
	return nil
}
