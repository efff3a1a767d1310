package attest_test

import (
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/nodeagent/attest"
)

// TestPod is with a process in control groups as kubelet makes them, and a list of
// pods in the form of its API.
func TestPod(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("missing: root")
		}
		t.Skip("missing: root")
	}
	const uid, other = "1f2c3d4e-0000-4111-8222-333344445555", "1f2c3d4e-0000-4111-8222-333344446666"
	var mu sync.Mutex
	var list []string
	asked := 0
	kubelet := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked++
		if r.URL.Path != "/pods" || r.Header.Get("Authorization") != "Bearer own" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = fmt.Fprintf(w, `{"kind":"PodList","apiVersion":"v1","items":[%s]}`, strings.Join(list, ","))
	}))
	defer kubelet.Close()
	dir := t.TempDir()
	for name, data := range map[string][]byte{"ca": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: kubelet.Certificate().Raw}), "token": []byte("own\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := attest.New(t.Context(), attest.Config{
		Node: "n1", TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), Dir: dir, Wait: 5 * time.Second,
		Kubelet: attest.Kubelet{URL: kubelet.URL, CAFile: filepath.Join(dir, "ca"), TokenFile: filepath.Join(dir, "token")}, Log: slog.New(slog.DiscardHandler),
	})
	defer a.Close()
	register(t, a, registration("r1", billing, "k8s:ns:shop", "k8s:sa:billing", "k8s:pod-name:billing-1", "k8s:pod-uid:"+uid))
	p := proctest.Start(t, "sleep", "600")
	group := filepath.Base(filepath.Dir(dir)) + "-kubelet"
	moveTo(t, p, group+"/kubepods/burstable/pod"+uid+"/"+strings.Repeat("a1", 32))
	c := caller(t, int32(p.PID()), 0)
	// The kubelet does not list the pod yet: the caller waits for that.
	go func() {
		proctest.Eventually(t, 4*time.Second, func() error {
			mu.Lock()
			defer mu.Unlock()
			if asked == 0 {
				return fmt.Errorf("not asked")
			}
			list = []string{
				`{"metadata":{"name":"billing-1","namespace":"shop","uid":"` + uid + `"},"spec":{"serviceAccountName":"billing"}}`,
				`{"metadata":{"name":"evil","namespace":"shop","uid":"` + other + `","annotations":{"kubernetes.io/config.hash":"` + uid + `"}},"spec":{"serviceAccountName":"evil"}}`,
			}
			return nil
		})
	}()
	wantID(t, a, c, billing)
	mu.Lock()
	before := asked
	mu.Unlock()
	wantID(t, a, c, billing)
	mu.Lock()
	if asked != before {
		t.Error("a pod that is known is asked for again")
	}
	mu.Unlock()
	// A pod beside it is another, and so is one that makes groups within its own.
	q := proctest.Start(t, "sleep", "600")
	moveTo(t, q, group+"/kubepods/burstable/pod"+other+"/"+strings.Repeat("b2", 32)+"/kubepods/pod"+uid)
	if x, err := a.Explain(t.Context(), int32(q.PID())); err != nil || x.Workload != nil || len(x.Nearest) != 1 || len(x.Nearest[0].Missing) != 3 {
		t.Errorf("%+v, %v", x, err)
	}
}

func TestKubeletAddress(t *testing.T) {
	for url, ok := range map[string]bool{
		"": true, "https://10.0.0.1:10250": true, "http://127.0.0.1:10255": true, "http://[::1]:10255/": true,
		"http://10.0.0.1:10255": false, "127.0.0.1:10250": false, "https://x/pods": false, "ftp://127.0.0.1": false,
	} {
		if err := (attest.Kubelet{URL: url}).Validate(); (err == nil) != ok {
			t.Errorf("%q: %v", url, err)
		}
	}
}
