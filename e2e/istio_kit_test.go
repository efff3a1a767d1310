package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// app is a program that the tests of Istio's features play: an echo that a
// request can ask to misbehave, in the header x-do: "sleep=300ms",
// "status=503", "fail=2" (503 for the first two requests with the same x-id).
type app struct {
	*echo
	mu    sync.Mutex
	tries map[string]int
	seen  map[string][]seen // by x-id
}

func newApp(t *testing.T, name string) *app {
	t.Helper()
	a := &app{echo: newEcho(t, name), tries: map[string]int{}, seen: map[string][]seen{}}
	a.answerWith(a.serve)
	return a
}

func (a *app) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	s := seen{Name: a.name, Method: r.Method, Path: r.URL.Path, Query: r.URL.RawQuery, Host: r.Host, Proto: r.Proto, Headers: r.Header, Body: string(body)}
	id := r.Header.Get("x-id")
	a.mu.Lock()
	a.tries[id]++
	try := a.tries[id]
	if id != "" {
		a.seen[id] = append(a.seen[id], s)
	}
	a.mu.Unlock()
	status := http.StatusOK
	for what := range strings.FieldsSeq(r.Header.Get("x-do")) {
		verb, value, _ := strings.Cut(what, "=")
		if v, only, ok := strings.Cut(verb, "@"); ok { // status@v3=500 is for v3 alone
			if only != a.name {
				continue
			}
			verb = v
		}
		switch verb {
		case "sleep":
			d, _ := time.ParseDuration(value)
			select {
			case <-time.After(d):
			case <-r.Context().Done():
				return
			}
		case "status":
			status, _ = strconv.Atoi(value)
		case "fail":
			if n, _ := strconv.Atoi(value); try <= n {
				status = http.StatusServiceUnavailable
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("x-echo", a.name)
	w.Header().Set("x-app-header", "from-app")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(s)
}

// requestsWith gives what the app saw of requests with an x-id.
func (a *app) requestsWith(id string) []seen {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.seen[id])
}

// play writes a LocalWorkload that the test plays, in any namespace and with any
// ports ("http 8000", app port of e for all of them unless given as third word).
func play(namespace, name string, labels map[string]string, appPort int, ports ...string) string {
	var b strings.Builder
	text, _ := json.Marshal(labels)
	fmt.Fprintf(&b, "---\napiVersion: local.writ.mesh/v1alpha1\nkind: LocalWorkload\nmetadata: {name: %s, namespace: %s, labels: %s}\nspec:\n  serviceAccount: %s\n", name, namespace, text, name)
	if len(ports) == 0 {
		ports = []string{"http 8000"}
	}
	b.WriteString("  ports:\n")
	for _, p := range ports {
		words := strings.Fields(p)
		private := strconv.Itoa(appPort)
		if len(words) == 3 {
			private = words[2]
		}
		fmt.Fprintf(&b, "  - {name: %s, port: %s, app: %s}\n", words[0], words[1], private)
	}
	return b.String()
}

// service writes a Kubernetes Service in namespace default.
func service(name, selector, ports string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: default}\nspec: {selector: {%s}, ports: [%s]}\n", name, selector, ports)
}

// object writes any object of a networking kind in a namespace.
func object(kind, namespace, name, spec string) string {
	group := "networking.istio.io/v1"
	if strings.HasSuffix(kind, "Authentication") || strings.HasSuffix(kind, "AuthorizationPolicy") {
		group = "security.istio.io/v1"
	}
	return fmt.Sprintf("---\napiVersion: %s\nkind: %s\nmetadata: {name: %s, namespace: %s}\nspec:\n%s\n", group, kind, name, namespace, indent(spec))
}

func indent(text string) string {
	lines := strings.Split(strings.Trim(text, "\n"), "\n")
	margin := len(lines[0]) - len(strings.TrimLeft(lines[0], "\t"))
	for i, l := range lines {
		if len(l) >= margin {
			l = l[margin:]
		}
		lines[i] = "  " + strings.ReplaceAll(l, "\t", "  ")
	}
	return strings.Join(lines, "\n")
}

// outcome says in a word what came of a request: the name of the app that
// answered with 200, else the status.
func (a answer) outcome() string {
	switch {
	case a.err != nil:
		return a.err.Error()
	case a.status == http.StatusOK && a.header.Get("x-echo") != "":
		return a.header.Get("x-echo")
	default:
		return strconv.Itoa(a.status)
	}
}

// spread counts the outcomes of n requests, sent eight at a time.
func spread(n int, send func(i int) answer) map[string]int {
	var mu sync.Mutex
	count := map[string]int{}
	var wg sync.WaitGroup
	next := make(chan int)
	for range 8 {
		wg.Go(func() {
			for i := range next {
				got := send(i).outcome()
				mu.Lock()
				count[got]++
				mu.Unlock()
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return count
}
