//go:build etcd

package main

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/writ-mesh/writ/ca/backup"
	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/filelog"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// member is a writ-ca that is one of three over their own cluster.
type member struct {
	*process
	config string
}

// members writes the configurations of three, each with a copy of a state directory.
func members(t *testing.T, state string) []*member {
	t.Helper()
	root := pkitest.NewRoot(t, "peers.example")
	leaf := pkitest.Leaf("spiffe://peers.example/m", time.Hour)
	leaf.URIs, leaf.IPAddresses = nil, []net.IP{net.IPv4(127, 0, 0, 1)}
	var peers []string
	for n := range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		peers = append(peers, fmt.Sprintf("m%d: %q", n, l.Addr()))
	}
	var out []*member
	for n := range 3 {
		m := &member{process: &process{t: t, dir: t.TempDir()}}
		m.config = filepath.Join(m.dir, "ca.yaml")
		if err := os.CopyFS(filepath.Join(m.dir, "state"), os.DirFS(state)); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(m.dir, "state"), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"root.key", "ledger.key", "jwt-keys.json"} {
			mode(t, filepath.Join(m.dir, "state", name), 0o600)
		}
		cert, key := root.Issue(t, leaf)
		for name, data := range map[string][]byte{"cert.pem": cert, "key.pem": key, "ca.pem": root.PEM()} {
			overwrite(t, filepath.Join(m.dir, name), string(data))
		}
		overwrite(t, m.config, fmt.Sprintf(`trust_domain: example.org
state: %[1]s/state
admin: unix://%[1]s/admin.sock
monitoring: unix://%[1]s/monitoring.sock
ledger:
  etcd:
    name: m%[2]d
    peers: {%[3]s}
    listen: %[4]s
    cert_file: %[1]s/cert.pem
    key_file: %[1]s/key.pem
    ca_file: %[1]s/ca.pem
`, m.dir, n, strings.Join(peers, ", "), strings.SplitN(peers[n], ": ", 2)[1]))
		out = append(out, m)
	}
	return out
}

// begin starts the process; answers waits for it.
func (m *member) begin() { m.Process = proctest.Start(m.t, os.Args[0], asMain, "-config", m.config) }

func (m *member) answers() {
	m.t.Helper()
	m.eventually("it answers", func() bool {
		_, err := m.admin().GetBundle(m.t.Context(), &capb.GetBundleRequest{})
		return err == nil
	})
}

// mint gets a certificate and tells under which root it is.
func (m *member) mint(der []byte, handed map[string]string) (string, error) {
	id := fmt.Sprintf("spiffe://example.org/n%d", len(handed))
	resp, err := m.admin().Mint(m.t.Context(), &capb.MintRequest{SpiffeId: id, Csr: der})
	if err != nil {
		return "", err
	}
	cert, err := x509.ParseCertificate(resp.GetChain()[0])
	if err != nil {
		return "", err
	}
	handed[hex.EncodeToString(cert.SerialNumber.Bytes())] = id
	return hex.EncodeToString(cert.AuthorityKeyId), nil
}

func (m *member) conn() *grpc.ClientConn {
	m.t.Helper()
	conn, err := grpc.NewClient("unix://"+m.socket("admin"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// An authority alone becomes three over their own cluster, with the same ledger. One is
// killed in the middle of a rotation, and the others issue and end it; back again, it has
// the new root's key and everything that anybody got. A backup of one is a whole
// authority.
func TestThreeReplicasWithoutSQL(t *testing.T) {
	alone := launch(t, t.TempDir())
	der, handed := request(t), make(map[string]string)
	if _, err := (&member{process: alone}).mint(der, handed); err != nil {
		t.Fatal(err)
	}
	alone.Kill()
	all := members(t, filepath.Join(alone.dir, "state"))
	for _, m := range all {
		m.begin()
	}
	var old string
	for _, m := range all {
		m.answers()
		var err error
		if old, err = m.mint(der, handed); err != nil {
			t.Fatal(err)
		}
	}
	rotate := func(m *member, req *capb.RotateRootRequest) *capb.RootsStatus {
		st, err := capb.NewRootsClient(m.conn()).RotateRoot(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	fresh := rotate(all[0], &capb.RotateRootRequest{Manual: true}).GetRotation().GetNewRoot()
	all[0].Kill()
	began := time.Now()
	rotate(all[1], &capb.RotateRootRequest{Force: true})
	for _, m := range all[1:] {
		m.eventually("it signs with the new root alone", func() bool {
			by, err := m.mint(der, handed)
			if err != nil {
				t.Logf("after %s: %v", time.Since(began), err)
				return false
			}
			if by != fresh && by != old {
				t.Errorf("signed by %s", by)
			}
			st, err := capb.NewRootsClient(m.conn()).GetRoots(t.Context(), &capb.GetRootsRequest{})
			return err == nil && by == fresh && len(st.GetRoots()) == 1
		})
	}
	t.Logf("the rotation ended %s after one was killed", time.Since(began))
	all[0].begin()
	all[0].answers()
	if by, err := all[0].mint(der, handed); err != nil || by != fresh {
		t.Errorf("back again it signs with %s, %v; want %s", by, err, fresh)
	}
	for n, m := range all {
		recorded := m.ledger()
		for serial, id := range handed {
			if recorded[serial].GetSpiffeId() != id {
				t.Errorf("member %d: certificate %s of %s was handed out, the ledger has %v", n, serial, id, recorded[serial])
			}
		}
	}
	backedUp(t, all[0], len(handed))
}

// backedUp makes a backup while a member runs, restores it, and starts an authority
// alone with it.
func backedUp(t *testing.T, m *member, certificates int) {
	t.Helper()
	each := func(f func(ledger.Record) error) error {
		stream, err := capb.NewLedgerClient(m.conn()).ReadEntries(t.Context(), &capb.ReadEntriesRequest{Documents: true})
		for err == nil {
			var e *capb.LedgerEntry
			if e, err = stream.Recv(); err == nil {
				err = f(ledger.Record{Index: e.GetIndex(), Leaf: e.GetEntry(), Values: e.GetDocuments()})
			}
		}
		if err.Error() == "EOF" {
			return nil
		}
		return err
	}
	var out bytes.Buffer
	if err := backup.WriteWithLedger(filepath.Join(m.dir, "state"), each, filepath.Join(t.TempDir(), filelog.Name), &out); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := backup.Restore(t.Context(), &out, filepath.Join(dir, "state"), "", time.Now()); err != nil {
		t.Fatal(err)
	}
	again := launch(t, dir)
	if n := len(again.ledger()); n != certificates {
		t.Errorf("%d certificates are in the restored ledger, want %d", n, certificates)
	}
	if _, err := (&member{process: again}).mint(request(t), make(map[string]string)); err != nil {
		t.Error(err)
	}
}
