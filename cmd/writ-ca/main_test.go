package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/internal/stoptest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// asMain is the first argument that makes the test binary be writ-ca, so that the
// tests run real processes.
const asMain = "writ-ca"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == asMain {
		os.Args = os.Args[1:]
		main()
	}
	stoptest.Become()
	os.Exit(m.Run())
}

// process is a writ-ca that runs.
type process struct {
	*proctest.Process
	t   *testing.T
	dir string
}

// launch runs writ-ca with flags only and waits until it answers.
func launch(t *testing.T, dir string) *process {
	t.Helper()
	p := &process{t: t, dir: dir}
	p.Process = proctest.Start(t, os.Args[0], asMain, "-trust-domain", "example.org", "-state", filepath.Join(dir, "state"),
		"-admin", "unix://"+p.socket("admin"), "-monitoring", "unix://"+p.socket("monitoring"))
	p.eventually("it answers", func() bool {
		_, err := p.admin().GetBundle(t.Context(), &capb.GetBundleRequest{})
		return err == nil
	})
	return p
}

func (p *process) socket(name string) string { return filepath.Join(p.dir, name+".sock") }

func (p *process) eventually(what string, f func() bool) {
	p.t.Helper()
	proctest.Until(p.t, 30*time.Second, what, func() bool {
		select {
		case <-p.Done():
			p.t.Fatalf("waiting until %s: writ-ca ended", what)
		default:
		}
		return f()
	})
}

func (p *process) admin() capb.AdminClient {
	p.t.Helper()
	conn, err := grpc.NewClient("unix://"+p.socket("admin"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close() })
	return capb.NewAdminClient(conn)
}

func (p *process) ready() bool {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", p.socket("monitoring"))
		},
	}}
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, "http://ca/readyz", nil)
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (p *process) ledger() map[string]*capb.CertificateRecord {
	p.t.Helper()
	stream, err := p.admin().ListCertificates(p.t.Context(), &capb.ListCertificatesRequest{})
	if err != nil {
		p.t.Fatal(err)
	}
	out := make(map[string]*capb.CertificateRecord)
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			p.t.Fatal(err)
		}
		out[r.GetSerial()] = r
	}
}

func (p *process) root() string {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, "state", "root.crt"))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(data)
}

func request(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// The process is killed while many ask, three times over. It comes back with the
// same root, and every certificate that anybody got is in its ledger.
func TestKillDuringIssuance(t *testing.T) {
	dir := t.TempDir()
	der := request(t)
	handed := make(map[string]string)
	var mu sync.Mutex
	firstRoot := ""
	for round := range 3 {
		p := launch(t, dir)
		if firstRoot == "" {
			firstRoot = p.root()
		}
		if p.root() != firstRoot {
			t.Fatalf("round %d: another root", round)
		}
		var wg sync.WaitGroup
		for w := range 8 {
			client := p.admin()
			wg.Go(func() {
				for n := 0; ; n++ {
					id := fmt.Sprintf("spiffe://example.org/r%d/w%d/n%d", round, w, n)
					resp, err := client.Mint(t.Context(), &capb.MintRequest{SpiffeId: id, Csr: der})
					if err != nil {
						return
					}
					cert, err := x509.ParseCertificate(resp.GetChain()[0])
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					handed[hex.EncodeToString(cert.SerialNumber.Bytes())] = id
					mu.Unlock()
				}
			})
		}
		p.eventually("some hundred are handed out", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(handed) >= (round+1)*300
		})
		p.Kill()
		wg.Wait()
	}
	p := launch(t, dir)
	if p.root() != firstRoot {
		t.Fatal("another root")
	}
	recorded := p.ledger()
	for serial, id := range handed {
		if r := recorded[serial]; r.GetSpiffeId() != id {
			t.Errorf("certificate %s of %s was handed out, the ledger has %v", serial, id, r)
		}
	}
	t.Logf("%d handed out, %d recorded", len(handed), len(recorded))
}

// A full disk, played by a limit on the size of files: nothing is issued, the
// probe turns red, and all is well again by itself when there is room.
func TestFullDisk(t *testing.T) {
	p := launch(t, t.TempDir())
	der := request(t)
	mint := func() error {
		_, err := p.admin().Mint(t.Context(), &capb.MintRequest{SpiffeId: "spiffe://example.org/a", Csr: der})
		return err
	}
	for range 5 {
		if err := mint(); err != nil {
			t.Fatal(err)
		}
	}
	before := len(p.ledger())
	info, err := os.Stat(filepath.Join(p.dir, "state", "ledger.log"))
	if err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	limit := func(bytes uint64) {
		t.Helper()
		if err := unix.Prlimit(p.PID(), unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: old.Max}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Prlimit(p.PID(), unix.RLIMIT_FSIZE, nil, &old); err != nil {
		t.Fatal(err)
	}
	limit(uint64(info.Size()) + 100)
	if !p.ready() {
		t.Fatal("not ready before the disk is full")
	}
	for range 3 {
		if err := mint(); status.Code(err) != codes.Unavailable {
			t.Fatalf("on a full disk: %v", err)
		}
	}
	if p.ready() {
		t.Fatal("ready on a full disk")
	}
	if n := len(p.ledger()); n != before {
		t.Fatalf("%d records, want %d", n, before)
	}
	limit(old.Cur)
	p.eventually("it is ready again", p.ready)
	if err := mint(); err != nil {
		t.Fatal(err)
	}
	if n := len(p.ledger()); n != before+1 {
		t.Fatalf("%d records, want %d", n, before+1)
	}
}

func TestStopsCleanly(t *testing.T) {
	p := launch(t, t.TempDir())
	p.Signal(syscall.SIGTERM)
	if err := p.Wait(); err != nil {
		t.Fatalf("exit after SIGTERM: %v", err)
	}
}

// Whatever is wrong at the start, there is one line that says what and where, and
// the exit code is not zero.
func TestBadInput(t *testing.T) {
	occupied, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer occupied.Close()
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, state string)
		args  []string
		want  string
	}{
		{"corrupt key", func(t *testing.T, state string) { overwrite(t, filepath.Join(state, "root.key"), "x") }, nil, "root.key is damaged"},
		{"corrupt ledger", func(t *testing.T, state string) { flip(t, filepath.Join(state, "ledger.log")) }, nil, "ledger.log is damaged at offset 0"},
		{"wide mode", func(t *testing.T, state string) { mode(t, filepath.Join(state, "root.key"), 0o644) }, nil, "has mode 0644"},
		{"wide directory", func(t *testing.T, state string) { mode(t, state, 0o755) }, nil, "chmod 700"},
		{"lost root", func(t *testing.T, state string) {
			for _, f := range []string{"root.key", "root.crt"} {
				if err := os.Remove(filepath.Join(state, f)); err != nil {
					t.Fatal(err)
				}
			}
		}, nil, "restore root.key and root.crt from a backup"},
		{"other trust domain", func(*testing.T, string) {}, []string{"-trust-domain", "example.com"}, "configured trust domain is spiffe://example.com"},
		{"port in use", func(*testing.T, string) {}, []string{"-listen", occupied.Addr().String()}, "the port is in use"},
		{"unwritable bundle", func(*testing.T, string) {}, []string{"-trust-bundle", "/proc/none/bundle.pem"}, "trust bundle"},
		{"read-only state directory", readOnly, nil, "cannot be written"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			p := launch(t, dir)
			der := request(t)
			for range 3 {
				if _, err := p.admin().Mint(t.Context(), &capb.MintRequest{SpiffeId: "spiffe://example.org/a", Csr: der}); err != nil {
					t.Fatal(err)
				}
			}
			p.Kill()
			state := filepath.Join(dir, "state")
			tc.spoil(t, state)
			args := []string{asMain, "-trust-domain", "example.org", "-state", state, "-admin", "unix://" + p.socket("admin"), "-log-level", "error"}
			again := proctest.Start(t, os.Args[0], append(args, tc.args...)...)
			select {
			case <-again.Done():
			case <-time.After(30 * time.Second):
				t.Fatal("it runs")
			}
			if exit := new(exec.ExitError); !errors.As(again.Wait(), &exit) || exit.ExitCode() != 1 {
				t.Fatalf("got %v, want exit code 1", again.Wait())
			}
			text := strings.TrimSuffix(again.Output.String(), "\n")
			if !strings.Contains(text, tc.want) || strings.Contains(text, "\n") {
				t.Fatalf("got %q, want one line with %q", text, tc.want)
			}
		})
	}
}

func overwrite(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// flip changes one byte of the first record.
func flip(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[40] ^= 1
	overwrite(t, path, string(data))
}

func mode(t *testing.T, path string, m os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, m); err != nil {
		t.Fatal(err)
	}
}

// readOnly takes the right to write away: by its mode, or, since that does not
// bind root, by a read-only mount of the directory onto itself.
func readOnly(t *testing.T, state string) {
	t.Helper()
	if os.Geteuid() != 0 {
		mode(t, state, 0o500)
		mode(t, filepath.Join(state, "lock"), 0o400)
		t.Cleanup(func() { mode(t, state, 0o700) })
		return
	}
	if err := unix.Mount(state, state, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("root without the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(state, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", state, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Skipf("root without the right to mount: %v", err)
	}
}
