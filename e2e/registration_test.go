package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/writ-mesh/writ/internal/proctest"
)

// TestRegistration: a program that no mesh directory names asks for an identity
// before anybody registered it, gets it by writ certs register a moment later, is
// taken for it by a program of the mesh, and loses it by writ certs unregister. A
// program beside it that is another file gets nothing.
func TestRegistration(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m := up(t, writeFiles(t, map[string]string{"a.yaml": fmt.Sprintf(`kind: LocalWorkload
metadata: {name: alpha, labels: {app: alpha}}
spec:
  serviceAccount: alpha
  command: [%q, %s]
  ports: [{name: http, port: 8000}]
`, self, spiffeProgram), "b.yaml": workload("beta", "beta", newEcho(t, "beta"))}))
	var alpha spiffeAnswer
	if got := m.get("beta-1", "http://alpha:8000/self"); json.Unmarshal([]byte(got.body), &alpha) != nil || alpha.Err != "" {
		t.Fatalf("alpha: %s", got)
	}

	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	billing, other := outsider{t: t, path: filepath.Join(dir, "billing")}, outsider{t: t, path: filepath.Join(dir, "other")}
	for _, o := range []*outsider{&billing, &other} {
		if err := os.WriteFile(o.path, content, 0o755); err != nil { //nolint:gosec // a program
			t.Fatal(err)
		}
		o.start(alpha.Socket)
	}
	id := "spiffe://cluster.local/ns/default/sa/billing"
	explain := func(o outsider, want string, code int) {
		t.Helper()
		out, got := m.writ("explain", "identity", "--pid", strconv.Itoa(o.p.PID()), m.dir)
		if got != code || !strings.Contains(out, want) || !strings.Contains(out, "unix:path:"+o.path) {
			t.Errorf("exit code %d, want %d and %q in:\n%s", got, code, want, out)
		}
	}
	explain(billing, "gets no identity", 1)

	out, code := m.writ("certs", "register", id, "--node", "local", "--fact", fmt.Sprint("unix:uid:", os.Getuid()), "--fact", "unix:path:"+billing.path, "--dir", m.dir, "-o", "json")
	var reg struct{ ID string }
	if err := json.Unmarshal([]byte(out), &reg); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}
	billing.wait()
	if a := billing.ask("/self"); a.ID != id {
		t.Errorf("it is %+v", a)
	}
	if a := billing.ask("/call?id=" + alpha.ID + "&address=" + alpha.Address); a.Said != "hello "+id {
		t.Errorf("to alpha it says %+v", a)
	}
	if a := billing.ask("/token?aud=x&id=" + alpha.ID); a.Code != codes.PermissionDenied {
		t.Errorf("a token of alpha's: %+v", a)
	}
	explain(billing, "is "+id, 0)
	explain(other, "wants unix:path:"+billing.path, 1)
	if other.up() {
		t.Error("another program has an identity")
	}

	if out, code := m.writ("certs", "unregister", reg.ID, "--dir", m.dir); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	proctest.Until(t, 20*time.Second, "its new tokens are refused", func() bool {
		return billing.ask("/token?aud="+strconv.FormatInt(time.Now().UnixNano(), 10)).Code == codes.PermissionDenied
	})
	explain(billing, "gets no identity", 1)
}

// outsider is a program that the mesh did not start.
type outsider struct {
	t    *testing.T
	path string
	addr string
	p    *proctest.Process
}

func (o *outsider) start(socket string) {
	o.t.Helper()
	o.addr = proctest.Address(o.t)
	port := o.addr[strings.LastIndexByte(o.addr, ':')+1:]
	o.p = proctest.Start(o.t, "env", "SPIFFE_ENDPOINT_SOCKET="+socket, "PORT="+port, o.path, spiffeProgram)
}

// up tells whether it serves, which it does once it has an identity.
func (o *outsider) up() bool {
	resp, err := client("").Get("http://" + o.addr + "/")
	if err == nil {
		_ = resp.Body.Close()
	}
	return err == nil
}

func (o *outsider) wait() {
	o.t.Helper()
	proctest.Until(o.t, 40*time.Second, "it has an identity", o.up)
}

func (o *outsider) ask(path string) (a spiffeAnswer) {
	o.t.Helper()
	resp, err := client("").Get("http://" + o.addr + path)
	if err != nil {
		o.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || json.Unmarshal(body, &a) != nil {
		o.t.Fatalf("%s: %s %v", path, body, err)
	}
	return a
}
