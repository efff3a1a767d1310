package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/writ-mesh/writ/cmd/writ/internal/stack"
)

// Result is what came of a check.
type Result struct {
	Name     string `json:"name"`
	Request  string `json:"request"`
	Expected string `json:"expected"`
	Got      string `json:"got"`
	// Rule is the rule that refused, if one did, and Where it was decided.
	Rule  string `json:"rule,omitempty"`
	Where string `json:"where,omitempty"`
	Pass  bool   `json:"pass"`
	// Why says what differs.
	Why string `json:"why,omitempty"`
}

const (
	requestTimeout = 10 * time.Second
	maxBody        = 1 << 20
	// deniedBy is the header in which the mesh names the rule that refused.
	deniedBy = "x-writ-denied-by"
)

// Run runs the checks in order against a mesh.
func Run(ctx context.Context, mesh *stack.Ready, f *File) []Result {
	out := make([]Result, 0, len(f.Checks))
	for i := range f.Checks {
		out = append(out, runOne(ctx, mesh, &f.Checks[i]))
	}
	return out
}

type answer struct {
	status int
	header http.Header
	body   string
	err    error
}

func runOne(ctx context.Context, mesh *stack.Ready, c *Check) Result {
	r := Result{Name: c.Name, Request: c.summary(), Expected: c.Expect.summary()}
	client, target, err := dial(mesh, c)
	if err != nil {
		r.Got, r.Why = "not sent", err.Error()
		return r
	}
	defer client.CloseIdleConnections()
	var a answer
	for range max(c.Repeat, 1) {
		a = send(ctx, client, target, &c.Request)
	}
	r.Got = a.summary()
	if a.err == nil {
		r.Rule, r.Where = a.header.Get(deniedBy), where(a, c)
	}
	if err := c.Expect.compare(a); err != nil {
		r.Why = err.Error()
		return r
	}
	r.Pass = true
	return r
}

// dial gives the client and the URL for a check.
func dial(mesh *stack.Ready, c *Check) (*http.Client, string, error) {
	tr := &http.Transport{DisableCompression: true}
	client := &http.Client{
		Timeout: requestTimeout, Transport: tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	switch {
	case c.From != "":
		w, err := mesh.Workload(c.From)
		if err != nil {
			return nil, "", err
		}
		proxy, err := url.Parse(w.Proxy)
		if err != nil {
			return nil, "", err
		}
		tr.Proxy = http.ProxyURL(proxy)
		return client, c.Request.URL, nil
	case c.Gateway != "":
		g, err := mesh.Gateway(c.Gateway)
		if err != nil {
			return nil, "", err
		}
		return client, g.URL + c.Request.Path, nil
	default:
		w, err := mesh.Workload(c.Direct)
		if err != nil {
			return nil, "", err
		}
		for _, port := range w.Ports {
			return client, fmt.Sprintf("http://%s:%d%s", w.Address, port, c.Request.Path), nil
		}
		return nil, "", fmt.Errorf("workload %s has no port", w.Name)
	}
}

func send(ctx context.Context, client *http.Client, target string, r *Request) answer {
	req, err := http.NewRequestWithContext(ctx, r.method(), target, strings.NewReader(r.Body))
	if err != nil {
		return answer{err: err}
	}
	for k, v := range r.Headers {
		req.Header.Set(k, v)
		if strings.EqualFold(k, "host") {
			req.Host = v
		}
	}
	if r.Bearer != "" {
		token, err := os.ReadFile(r.Bearer)
		if err != nil {
			return answer{err: err}
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	return answer{status: resp.StatusCode, header: resp.Header, body: string(body), err: err}
}

// compare says what differs, nil if nothing does.
func (e *Expect) compare(a answer) error {
	if e.Refused {
		if a.err == nil {
			return fmt.Errorf("an answer came: %d", a.status)
		}
		return nil
	}
	if a.err != nil {
		return a.err
	}
	if a.status != e.Status {
		return fmt.Errorf("status %d instead of %d: %.120q", a.status, e.Status, a.body)
	}
	if !strings.Contains(a.body, e.Body) {
		return fmt.Errorf("%q is not in the body", e.Body)
	}
	for k, v := range e.Headers {
		if got := a.header.Get(k); got != v {
			return fmt.Errorf("header %s is %q instead of %q", k, got, v)
		}
	}
	if got := a.header.Get(deniedBy); !strings.HasPrefix(got, e.DeniedBy) {
		return fmt.Errorf("refused by %q instead of %q", got, e.DeniedBy)
	}
	return nil
}

func (r *Request) method() string {
	if r.Method == "" {
		return http.MethodGet
	}
	return r.Method
}

func (c *Check) summary() string {
	s := c.Request.method() + " "
	switch {
	case c.From != "":
		s = c.From + ": " + s + strings.TrimPrefix(c.Request.URL, "http://")
	case c.Gateway != "":
		s = c.Gateway + ": " + s + c.Request.Path
	default:
		s = "outside: " + s + c.Direct + c.Request.Path
	}
	if c.Repeat > 1 {
		s += fmt.Sprintf(" x%d", c.Repeat)
	}
	return s
}

func (e *Expect) summary() string {
	if e.Refused {
		return "refused"
	}
	return fmt.Sprint(e.Status)
}

func (a answer) summary() string {
	if a.err != nil {
		var ue *url.Error
		if errors.As(a.err, &ue) && ue.Timeout() {
			return "timeout"
		}
		return "refused"
	}
	return fmt.Sprint(a.status)
}

// where tells which process decided, from the kind of the rule.
func where(a answer, c *Check) string {
	rule := a.header.Get(deniedBy)
	kind, _, _ := strings.Cut(rule, " ")
	switch {
	case rule == "":
		return ""
	case kind == "RegoPolicy":
		return "authz"
	case kind == "QuotaPolicy":
		return "ratelimit"
	case c.Gateway != "":
		return "Envoy behind " + c.Gateway
	default:
		return "Envoy of the callee"
	}
}
