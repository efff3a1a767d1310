package attest_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/writ-mesh/writ/internal/proctest"
	"github.com/writ-mesh/writ/nodeagent/attest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

const (
	billing  = "spiffe://cluster.local/ns/default/sa/billing"
	shipping = "spiffe://cluster.local/ns/default/sa/shipping"
)

// impatient is an attestor that refuses at once.
func impatient(t *testing.T) *attest.Attestor {
	t.Helper()
	a := attest.New(t.Context(), attest.Config{
		Node: "n1", TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), Dir: t.TempDir(),
		Wait: time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(a.Close)
	return a
}

func registration(id, spiffeID string, facts ...string) *capb.Registration {
	return &capb.Registration{Id: id, SpiffeId: spiffeID, Facts: facts}
}

// register gives the attestor these registrations and no others.
func register(t *testing.T, a *attest.Attestor, rs ...*capb.Registration) {
	t.Helper()
	if err := a.Apply(t.Context(), &capb.RegistrationUpdate{Full: true, Put: rs, Complete: true}); err != nil {
		t.Fatal(err)
	}
}

func wantRefused(t *testing.T, a *attest.Attestor, c attest.Caller) error {
	t.Helper()
	l, err := a.Attest(t.Context(), c)
	if err == nil {
		t.Errorf("attested as %s", l.ID)
		l.Release()
		return nil
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("attest: %v, want PERMISSION_DENIED", err)
	}
	return err
}

func wantID(t *testing.T, a *attest.Attestor, c attest.Caller, id string) *attest.Lease {
	t.Helper()
	l := mustAttest(t, a, c)
	if l.ID.String() != id || !l.Registered {
		t.Errorf("attested as %+v, want %s", l.Workload, id)
	}
	return l
}

// program is a copy of a program that sleeps, with its own content.
func program(t *testing.T, path string) (sum string) {
	t.Helper()
	in, err := os.Open("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	w := io.MultiWriter(out, h)
	if _, err := io.Copy(w, in); err != nil {
		t.Fatal(err)
	}
	// What follows an ELF file's own content is not looked at by the loader.
	if _, err := fmt.Fprintln(w, path); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func run(t *testing.T, path string) int32 {
	t.Helper()
	return int32(proctest.Start(t, path, "600").PID())
}

// resolved is a temporary directory without symbolic links in its path.
func resolved(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestRegistrationByExecutable(t *testing.T) {
	dir := resolved(t)
	good := filepath.Join(dir, "billing")
	sum := program(t, good)
	a := impatient(t)
	register(t, a, registration("r1", billing, "unix:path:"+good, "unix:sha256:"+sum, "unix:uid:1000"))
	c := caller(t, run(t, good), 1000)
	wantID(t, a, c, billing)
	c.UID = 1001
	wantRefused(t, a, c)
}

// TestSymlinkIsNotTheProgram: a link with the name of the program to another one,
// and a link with another name to the program.
func TestSymlinkIsNotTheProgram(t *testing.T) {
	dir := resolved(t)
	good, evil, disguise, alias := filepath.Join(dir, "good"), filepath.Join(dir, "evil"), filepath.Join(dir, "disguise"), filepath.Join(dir, "alias")
	program(t, good)
	program(t, evil)
	for from, to := range map[string]string{disguise: evil, alias: good} {
		if err := os.Symlink(to, from); err != nil {
			t.Fatal(err)
		}
	}
	a := impatient(t)
	register(t, a, registration("r1", billing, "unix:path:"+disguise))
	wantRefused(t, a, caller(t, run(t, disguise), 1))
	register(t, a, registration("r1", billing, "unix:path:"+good))
	wantID(t, a, caller(t, run(t, alias), 1), billing)
	wantRefused(t, a, caller(t, run(t, disguise), 1))
}

// TestRenamedBinary: a program that is moved to another's place after it was
// started has the other's name, and still its own content.
func TestRenamedBinary(t *testing.T) {
	dir := resolved(t)
	good, evil := filepath.Join(dir, "good"), filepath.Join(dir, "evil")
	sum := program(t, good)
	program(t, evil)
	pid := run(t, evil)
	if err := os.Rename(evil, good); err != nil {
		t.Fatal(err)
	}
	a := impatient(t)
	register(t, a, registration("r1", billing, "unix:path:"+good, "unix:sha256:"+sum))
	wantRefused(t, a, caller(t, pid, 1))
}

// TestReplacedBinary: whose file was replaced or deleted after it was started is
// not who the new file is, and is still known by what it executes.
func TestReplacedBinary(t *testing.T) {
	dir := resolved(t)
	path := filepath.Join(dir, "app")
	before := program(t, path)
	pid := run(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	a := impatient(t)
	register(t, a, registration("r1", billing, "unix:path:"+path), registration("r2", billing, "unix:path:"+path+" (deleted)"))
	wantRefused(t, a, caller(t, pid, 1))
	// A file that has the name which the kernel gives the deleted one.
	program(t, path+" (deleted)")
	wantRefused(t, a, caller(t, pid, 1))
	after := filepath.Join(dir, "new")
	afterSum := program(t, after)
	if err := os.Rename(after, path); err != nil {
		t.Fatal(err)
	}
	wantRefused(t, a, caller(t, pid, 1))
	register(t, a, registration("r1", shipping, "unix:sha256:"+afterSum), registration("r2", billing, "unix:sha256:"+before))
	wantID(t, a, caller(t, pid, 1), billing)
}

// TestPathOfAnotherMountNamespace: whoever may make a mount namespace can have
// any file under any name.
func TestPathOfAnotherMountNamespace(t *testing.T) {
	dir := resolved(t)
	good, evil := filepath.Join(dir, "good"), filepath.Join(dir, "evil")
	program(t, good)
	evilSum := program(t, evil)
	p := proctest.Start(t, "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", `mount --bind "$0" "$1" && exec "$1" 600`, evil, good)
	proctest.Until(t, 10*time.Second, "it runs under the other's name", func() bool {
		select {
		case <-p.Done():
			t.Skipf("this machine makes no user namespace: %s", p.Output)
		default:
		}
		got, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID()))
		return err == nil && got == good
	})
	a := impatient(t)
	c := caller(t, int32(p.PID()), 1)
	register(t, a, registration("r1", billing, "unix:path:"+good))
	wantRefused(t, a, c)
	register(t, a, registration("r1", shipping, "unix:sha256:"+evilSum))
	wantID(t, a, c, shipping)
}

// TestExecAfterConnecting: a process that connected as one program and asks as
// another is the other.
func TestExecAfterConnecting(t *testing.T) {
	dir := resolved(t)
	other, goOn := filepath.Join(dir, "other"), filepath.Join(dir, "go-on")
	program(t, other)
	p := proctest.Start(t, "/bin/sh", "-c", `while [ ! -e "$0" ]; do sleep 0.01; done; exec "$1" 600`, goOn, other)
	shell, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	c := caller(t, int32(p.PID()), 1) // as it connects
	a := impatient(t)
	register(t, a, registration("r1", billing, "unix:path:"+shell))
	wantID(t, a, c, billing)
	if err := os.WriteFile(goOn, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	proctest.Until(t, 10*time.Second, "it executes the other program", func() bool {
		now, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID()))
		return err == nil && now == other
	})
	wantRefused(t, a, c)
}

// TestProcessIDIsUsedAgain: facts are never those of a later process that has the
// caller's id.
func TestProcessIDIsUsedAgain(t *testing.T) {
	dir := resolved(t)
	good := filepath.Join(dir, "good")
	program(t, good)
	a := impatient(t)
	register(t, a, registration("r1", billing, "unix:path:"+good))
	c := caller(t, run(t, good), 1)
	earlier := c
	earlier.StartTime-- // it had the id before
	wantRefused(t, a, earlier)
	unknown := c
	unknown.StartTime = 0 // it had ended when its connection was accepted
	wantRefused(t, a, unknown)
	wantID(t, a, c, billing)
}

// TestUnmappedUser: a user or group that has no name here proves nothing.
func TestUnmappedUser(t *testing.T) {
	pid, _ := start(t)
	a := impatient(t)
	register(t, a, registration("r1", billing, "unix:uid:65534"), registration("r2", billing, "unix:gid:65534"))
	c := caller(t, pid, 65534)
	c.GID = 65534
	wantRefused(t, a, c)
}

func TestParents(t *testing.T) {
	dir := resolved(t)
	child := filepath.Join(dir, "child")
	program(t, child)
	pids := filepath.Join(dir, "pid")
	p := proctest.Start(t, "/bin/sh", "-c", `"$0" 600 >/dev/null 2>&1 & echo $! > "$1.part" && mv "$1.part" "$1"; wait`, child, pids)
	var pid int32
	proctest.Until(t, 10*time.Second, "the child runs", func() bool {
		data, err := os.ReadFile(pids)
		if err != nil {
			return false
		}
		_, err = fmt.Sscan(string(data), &pid)
		exe, lerr := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return err == nil && lerr == nil && exe == child
	})
	t.Cleanup(func() { _ = syscall.Kill(int(pid), syscall.SIGKILL) }) // its parent still lives
	shell, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a := impatient(t)
	register(t, a, registration("r1", billing, "unix:parent_path:"+shell, "unix:parent_path:"+self))
	wantID(t, a, caller(t, pid, 1), billing)
	wantRefused(t, a, caller(t, int32(p.PID()), 1)) // the shell is not its own parent
}

func TestMostSpecificWinsAndTiesAreRefused(t *testing.T) {
	pid, _ := start(t)
	uid := uint32(1000)
	c := caller(t, pid, uid)
	c.GID = 50
	for _, tc := range []struct {
		name   string
		regs   []*capb.Registration
		placed bool
		want   string // "" is refused
		says   string
	}{
		{"one", []*capb.Registration{registration("a", billing, "unix:uid:1000")}, false, billing, ""},
		{"more facts win", []*capb.Registration{registration("a", billing, "unix:uid:1000"), registration("b", shipping, "unix:uid:1000", "unix:gid:50")}, false, shipping, ""},
		{"more facts that are not there", []*capb.Registration{registration("a", billing, "unix:uid:1000"), registration("b", shipping, "unix:uid:1000", "unix:gid:51")}, false, billing, ""},
		{"a fact twice counts once", []*capb.Registration{registration("a", billing, "unix:uid:1000", "unix:uid:1000"), registration("b", shipping, "unix:gid:50")}, false, "", "2 registrations"},
		{"two identities", []*capb.Registration{registration("a", billing, "unix:uid:1000"), registration("b", shipping, "unix:gid:50")}, false, "", "2 registrations"},
		{"the same identity twice", []*capb.Registration{registration("a", billing, "unix:uid:1000"), registration("b", billing, "unix:gid:50")}, false, billing, ""},
		{"a placement and a registration", []*capb.Registration{registration("a", billing, "unix:uid:1000")}, true, "", "another"},
		{"a placement and a closer registration", []*capb.Registration{registration("a", billing, "unix:uid:1000", "unix:gid:50")}, true, billing, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := impatient(t)
			if tc.placed {
				place(t, a, workload("reviews", &uid))
			}
			register(t, a, tc.regs...)
			if tc.want != "" {
				wantID(t, a, c, tc.want)
				return
			}
			if err := wantRefused(t, a, c); err != nil && !strings.Contains(status.Convert(err).Message(), tc.says) {
				t.Errorf("%q does not say %q", status.Convert(err).Message(), tc.says)
			}
		})
	}
}

// TestPlacementOfTheSameIdentity: a registration that says what pilot says does
// not take the proxy from its workload.
func TestPlacementOfTheSameIdentity(t *testing.T) {
	uid := uint32(1000)
	a := impatient(t)
	place(t, a, workload("reviews", &uid))
	register(t, a, registration("a", "spiffe://cluster.local/ns/default/sa/reviews", "unix:uid:1000"))
	if l := mustAttest(t, a, attest.Caller{UID: uid}); l.ProxyID != proxyID("reviews") || l.Registered {
		t.Errorf("attested as %+v", l.Workload)
	}
}

// TestRefusalTellsTheCallerNothingOfOthers: the operator's text has facts and
// registrations, the caller's has none.
func TestRefusalTellsTheCallerNothingOfOthers(t *testing.T) {
	pid, _ := start(t)
	a := impatient(t)
	register(t, a, registration("r-77", billing, "unix:uid:1000", "unix:gid:77"))
	c := caller(t, pid, 1000)
	c.GID = 50
	err := wantRefused(t, a, c)
	for _, want := range []string{"unix:uid:1000", "unix:gid:50", "r-77", billing, "wants unix:gid:77"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the operator reads %q, which does not say %q", err, want)
		}
	}
	for _, secret := range []string{"r-77", "billing", "gid"} {
		if told := status.Convert(err).Message(); strings.Contains(told, secret) {
			t.Errorf("the caller is told %q, which says %q", told, secret)
		}
	}
}

func TestExplain(t *testing.T) {
	dir := resolved(t)
	path := filepath.Join(dir, "app")
	sum := program(t, path)
	pid := run(t, path)
	uid, gid := os.Getuid(), os.Getgid()
	a := impatient(t)
	register(t, a,
		registration("far", shipping, fmt.Sprint("unix:uid:", uid), "unix:path:/usr/bin/other", "k8s:pod-uid:x"),
		registration("near", billing, fmt.Sprint("unix:uid:", uid), "unix:path:"+path, "docker:name:web"),
		registration("none", shipping, "docker:name:db"))
	x, err := a.Explain(t.Context(), pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{fmt.Sprint("unix:uid:", uid), fmt.Sprint("unix:gid:", gid), "unix:path:" + path, "unix:sha256:" + sum} {
		if !slices.Contains(x.Facts, want) {
			t.Errorf("facts %q are without %s", x.Facts, want)
		}
	}
	if x.Workload != nil || x.Refusal == "" || x.Registrations != 3 {
		t.Errorf("explained as %+v", x)
	}
	if len(x.Nearest) != 2 || x.Nearest[0].ID != "near" || !slices.Equal(x.Nearest[0].Missing, []string{"docker:name:web"}) {
		t.Errorf("nearest are %+v", x.Nearest)
	}
	register(t, a, registration("fits", billing, "unix:path:"+path))
	if x, err = a.Explain(t.Context(), pid); err != nil || x.Workload == nil || x.Workload.ID.String() != billing || x.By != "registration fits" {
		t.Errorf("explained as %+v, %v", x, err)
	}
	if _, err := a.Explain(t.Context(), -1); status.Code(err) != codes.NotFound {
		t.Errorf("process -1: %v", err)
	}
}

// TestBrokenListDropsNothing: a full list that ends in the middle, with its stream,
// does not make the next stream drop what it did not get to.
func TestBrokenListDropsNothing(t *testing.T) {
	a := impatient(t)
	one, two := registration("a", billing, "unix:uid:1"), registration("b", shipping, "unix:uid:2")
	register(t, a, one, two)
	had := a.Resume()
	apply := func(u *capb.RegistrationUpdate) {
		t.Helper()
		if err := a.Apply(t.Context(), u); err != nil {
			t.Fatal(err)
		}
	}
	apply(&capb.RegistrationUpdate{Full: true, Put: []*capb.Registration{one}})
	if got := a.Resume(); !slices.Equal(got, had) {
		t.Error("half a list changed what it has")
	}
	apply(&capb.RegistrationUpdate{Complete: true}) // it has all
	wantID(t, a, attest.Caller{UID: 2}, shipping)
	// One that cannot be used is left out and told, the others count.
	err := a.Apply(t.Context(), &capb.RegistrationUpdate{Complete: true, Delete: []string{"a"}, Put: []*capb.Registration{
		registration("c", billing, "future:fact:1"), registration("d", "spiffe://cluster.local/writ/pilot", "unix:uid:3"),
		registration("e", "spiffe://example.org/x", "unix:uid:3"), registration("f", billing, "unix:uid:4"), registration("g", billing),
	}})
	if err == nil || strings.Count(err.Error(), "registration ") < 4 {
		t.Errorf("%v", err)
	}
	wantID(t, a, attest.Caller{UID: 4}, billing)
	wantRefused(t, a, attest.Caller{UID: 1})
	wantRefused(t, a, attest.Caller{UID: 3})
}

// BenchmarkAttest is one attestation by user, path and hash of the file.
func BenchmarkAttest(b *testing.B) {
	self, err := filepath.EvalSymlinks("/proc/self/exe")
	if err != nil {
		b.Fatal(err)
	}
	a := attest.New(b.Context(), attest.Config{
		Node: "n1", TrustDomain: spiffeid.RequireTrustDomainFromString("cluster.local"), Dir: b.TempDir(),
		Wait: time.Millisecond, Log: slog.New(slog.DiscardHandler),
	})
	defer a.Close()
	explained, err := a.Explain(b.Context(), int32(os.Getpid()))
	if err != nil {
		b.Fatal(err)
	}
	reg := registration("r1", billing, "unix:path:"+self, fmt.Sprint("unix:uid:", os.Getuid()))
	for _, f := range explained.Facts {
		if strings.HasPrefix(f, "unix:sha256:") {
			reg.Facts = append(reg.Facts, f)
		}
	}
	if err := a.Apply(b.Context(), &capb.RegistrationUpdate{Full: true, Put: []*capb.Registration{reg}, Complete: true}); err != nil {
		b.Fatal(err)
	}
	started, err := attest.StartTime(int32(os.Getpid()))
	if err != nil {
		b.Fatal(err)
	}
	c := attest.Caller{PID: int32(os.Getpid()), StartTime: started, UID: uint32(os.Getuid())}
	for b.Loop() {
		l, err := a.Attest(b.Context(), c)
		if err != nil || len(reg.GetFacts()) != 3 {
			b.Fatal(err, reg.GetFacts())
		}
		l.Release()
	}
}
