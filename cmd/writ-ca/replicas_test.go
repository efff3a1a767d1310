package main

import (
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/writ-mesh/writ/ca/ledger/pgtest"
	"github.com/writ-mesh/writ/internal/proctest"
	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// launchReplica runs writ-ca over a database. keys is the state directory of another
// replica, whose keys it has too; empty for the first one.
func launchReplica(t *testing.T, url, keys string) *process {
	t.Helper()
	p := &process{t: t, dir: t.TempDir()}
	state, config := filepath.Join(p.dir, "state"), filepath.Join(p.dir, "ca.yaml")
	if keys != "" {
		if err := os.Mkdir(state, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"root.key", "root.crt", "ledger.key", "jwt-keys.json"} {
			data, err := os.ReadFile(filepath.Join(keys, name))
			if err != nil {
				t.Fatal(err)
			}
			overwrite(t, filepath.Join(state, name), string(data))
		}
	}
	overwrite(t, config, fmt.Sprintf("trust_domain: example.org\nstate: %s\nadmin: unix://%s\nmonitoring: unix://%s\nledger: {postgres: %q}\n",
		state, p.socket("admin"), p.socket("monitoring"), url))
	p.Process = proctest.Start(t, os.Args[0], asMain, "-config", config)
	p.eventually("it answers", func() bool {
		_, err := p.admin().GetBundle(t.Context(), &capb.GetBundleRequest{})
		return err == nil
	})
	return p
}

// Two processes issue over one database, and one is killed: the other goes on, and has
// every certificate that anybody got from either.
func TestKilledReplicaLosesNothing(t *testing.T) {
	url := pgtest.Start(t).Schema(t)
	first := launchReplica(t, url, "")
	second := launchReplica(t, url, filepath.Join(first.dir, "state"))
	der := request(t)
	handed := make(map[string]string)
	var mu sync.Mutex
	count := func(prefix string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, id := range handed {
			if strings.HasPrefix(id, prefix) {
				n++
			}
		}
		return n
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for r, p := range []*process{first, second} {
		for w := range 4 {
			client := p.admin()
			wg.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					id := fmt.Sprintf("spiffe://example.org/r%d/w%d/n%d", r, w, n)
					resp, err := client.Mint(t.Context(), &capb.MintRequest{SpiffeId: id, Csr: der})
					if err != nil {
						if r == 1 {
							t.Errorf("the replica that lives: %v", err)
						}
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
	}
	second.eventually("both hand out", func() bool {
		return count("spiffe://example.org/r0/") >= 100 && count("spiffe://example.org/r1/") >= 100
	})
	first.Kill()
	before := count("spiffe://example.org/r1/")
	second.eventually("the other goes on", func() bool { return count("spiffe://example.org/r1/") >= before+100 })
	close(stop)
	wg.Wait()
	recorded := second.ledger()
	for serial, id := range handed {
		if r := recorded[serial]; r.GetSpiffeId() != id {
			t.Errorf("certificate %s of %s was handed out, the ledger has %v", serial, id, r)
		}
	}
	t.Logf("%d handed out, %d recorded", len(handed), len(recorded))
}
