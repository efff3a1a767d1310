package check

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/writ-mesh/writ/cmd/internal/pod"
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

// deniedBy is the header in which the mesh names the rule that refused.
const deniedBy = "x-writ-denied-by"

// Run runs the checks in order against a mesh.
func Run(ctx context.Context, mesh *stack.Ready, f *File) []Result {
	out := make([]Result, 0, len(f.Checks))
	for i := range f.Checks {
		out = append(out, runOne(ctx, mesh, &f.Checks[i]))
	}
	return out
}

// sender sends the request of a check, as often as it says. An error means that
// it could not be sent at all.
type sender func(ctx context.Context, r *pod.Request) (pod.Answer, error)

func runOne(ctx context.Context, mesh *stack.Ready, c *Check) Result {
	r := Result{Name: c.Name, Request: c.summary(), Expected: c.Expect.summary()}
	a, err := ask(ctx, mesh, c)
	if err != nil {
		r.Got, r.Why = "not sent", err.Error()
		return r
	}
	r.Got = gist(a)
	if a.Error == "" {
		r.Rule, r.Where = a.Header.Get(deniedBy), where(a, c)
	}
	if err := c.Expect.compare(a); err != nil {
		r.Why = err.Error()
		return r
	}
	r.Pass = true
	return r
}

func ask(ctx context.Context, mesh *stack.Ready, c *Check) (pod.Answer, error) {
	send, target, err := caller(mesh, c)
	if err != nil {
		return pod.Answer{}, err
	}
	r, err := c.Request.toSend(target)
	if err != nil {
		return pod.Answer{}, err
	}
	r.Repeat = c.Repeat
	return send(ctx, r)
}

// caller gives what sends the request of a check, and the URL.
func caller(mesh *stack.Ready, c *Check) (sender, string, error) {
	switch {
	case c.From != "":
		w, err := mesh.Workload(c.From)
		if err != nil {
			return nil, "", err
		}
		if len(w.Exec) > 0 {
			return elsewhere(w.Exec), c.Request.URL, nil
		}
		proxy, err := url.Parse(w.Proxy)
		if err != nil {
			return nil, "", err
		}
		return here(http.ProxyURL(proxy)), c.Request.URL, nil
	case c.Gateway != "":
		g, err := mesh.Gateway(c.Gateway)
		if err != nil {
			return nil, "", err
		}
		return here(nil), g.URL + c.Request.Path, nil
	default:
		w, err := mesh.Workload(c.Direct)
		if err != nil {
			return nil, "", err
		}
		for _, port := range w.Ports {
			target := fmt.Sprintf("http://%s:%d%s", w.Address, port, c.Request.Path)
			if len(mesh.Outside) > 0 {
				return elsewhere(mesh.Outside), target, nil
			}
			return here(nil), target, nil
		}
		return nil, "", fmt.Errorf("workload %s has no port", w.Name)
	}
}

// here sends from this process.
func here(proxy func(*http.Request) (*url.URL, error)) sender {
	return func(ctx context.Context, r *pod.Request) (pod.Answer, error) {
		client := pod.NewClient()
		client.Transport = &http.Transport{DisableCompression: true, Proxy: proxy}
		defer client.CloseIdleConnections()
		return pod.Do(ctx, client, r), nil
	}
}

// elsewhereBound is how long a command may take to send what it was given.
const elsewhereBound = time.Minute

// elsewhere sends through a command that runs `writ-pod request` in another place.
func elsewhere(command []string) sender {
	return func(ctx context.Context, r *pod.Request) (pod.Answer, error) {
		ctx, cancel := context.WithTimeout(ctx, elsewhereBound)
		defer cancel()
		in, err := json.Marshal(r)
		if err != nil {
			return pod.Answer{}, err
		}
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		cmd.Stdin = bytes.NewReader(in)
		var out, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &stderr
		if err := cmd.Run(); err != nil {
			return pod.Answer{}, fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, strings.TrimSpace(stderr.String()))
		}
		var a pod.Answer
		if err := json.Unmarshal(out.Bytes(), &a); err != nil {
			return pod.Answer{}, fmt.Errorf("%s: %w", strings.Join(command, " "), err)
		}
		return a, nil
	}
}

// toSend is the request as it is sent to target.
func (r *Request) toSend(target string) (*pod.Request, error) {
	out := &pod.Request{Method: r.method(), URL: target, Headers: maps.Clone(r.Headers), Body: r.Body}
	if r.Bearer == "" {
		return out, nil
	}
	token, err := os.ReadFile(r.Bearer)
	if err != nil {
		return nil, err
	}
	if out.Headers == nil {
		out.Headers = make(map[string]string)
	}
	out.Headers["Authorization"] = "Bearer " + strings.TrimSpace(string(token))
	return out, nil
}

// compare says what differs, nil if nothing does.
func (e *Expect) compare(a pod.Answer) error {
	if e.Refused {
		if a.Error == "" {
			return fmt.Errorf("an answer came: %d", a.Status)
		}
		return nil
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	if a.Status != e.Status {
		return fmt.Errorf("status %d instead of %d: %.120q", a.Status, e.Status, a.Body)
	}
	if !strings.Contains(a.Body, e.Body) {
		return fmt.Errorf("%q is not in the body", e.Body)
	}
	for k, v := range e.Headers {
		if got := a.Header.Get(k); got != v {
			return fmt.Errorf("header %s is %q instead of %q", k, got, v)
		}
	}
	if got := a.Header.Get(deniedBy); !strings.HasPrefix(got, e.DeniedBy) {
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

// gist is an answer in a word.
func gist(a pod.Answer) string {
	switch {
	case a.Timeout:
		return "timeout"
	case a.Error != "":
		return "refused"
	}
	return fmt.Sprint(a.Status)
}

// where tells which process decided, from the kind of the rule.
func where(a pod.Answer, c *Check) string {
	rule := a.Header.Get(deniedBy)
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
