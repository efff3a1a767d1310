package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	capb "github.com/writ-mesh/writ/proto/writ/ca/v1"
)

// trustDomain is that of the rows about identities.
const trustDomain = "example.org"

// authority is a real writ-ca that issues over TLS.
type authority struct {
	*process
	dir        string
	listen     string
	monitoring string
	admin      *grpc.ClientConn
}

// unlimited is the configuration of an authority that lets every caller ask as much
// as he can.
const unlimited = "limits: {caller_rate: 100000, caller_burst: 1000000, caller_calls: 100000, identity_rate: 100000, identity_burst: 1000000, " +
	"join_rate: 100000, join_burst: 1000000, join_total_rate: 100000, join_total_burst: 1000000}\n"

// launchAuthority starts one with a state of its own below dir.
func launchAuthority(ctx context.Context, o options, dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	a := &authority{dir: dir}
	var err error
	if a.listen, err = freeAddress(); err != nil {
		return nil, err
	}
	if a.monitoring, err = freeAddress(); err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "ca.yaml")
	if err := os.WriteFile(conf, []byte(unlimited), 0o600); err != nil {
		return nil, err
	}
	socket := "unix://" + filepath.Join(dir, "admin")
	if a.process, err = launch(ctx, a.listen, filepath.Join(o.bin, "writ-ca"), "-config", conf, "-trust-domain", trustDomain, "-state", filepath.Join(dir, "state"),
		"-listen", a.listen, "-admin", socket, "-monitoring", a.monitoring); err != nil {
		return nil, err
	}
	if a.admin, err = grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		a.process.stop()
		return nil, err
	}
	return a, nil
}

func (a *authority) stop() {
	_ = a.admin.Close()
	a.process.stop()
}

func (a *authority) bundleFile() string { return filepath.Join(a.dir, "state", "bundle.pem") }

func (a *authority) bundle() (*x509bundle.Bundle, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, err
	}
	return x509bundle.Load(td, a.bundleFile())
}

// joinToken makes a one-time token for an identity of Writ's own.
func (a *authority) joinToken(ctx context.Context, id string) (string, error) {
	resp, err := capb.NewAdminClient(a.admin).CreateJoinToken(ctx, &capb.CreateJoinTokenRequest{SpiffeId: id})
	return resp.GetToken(), err
}

// register makes n registrations, many at the same time.
func (a *authority) register(ctx context.Context, n int, of func(i int) *capb.PutRegistrationRequest) error {
	client := capb.NewRegistrationsClient(a.admin)
	return parallel(ctx, n, 128, func(ctx context.Context, i int) error {
		_, err := client.PutRegistration(ctx, of(i))
		return err
	})
}

// ledgerOperations is what was asked of the ledger since the start.
func (a *authority) ledgerOperations(ctx context.Context) (float64, error) {
	return metric(ctx, a.monitoring, "writ_ca_ledger_operations_total")
}

// parallel calls f for 0 to n-1, so many at once, and returns its first error.
func parallel(ctx context.Context, n, at int, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(at, n) {
		wg.Go(func() {
			for i := range next {
				if err := f(ctx, i); err != nil {
					cancel(fmt.Errorf("%d of %d: %w", i+1, n, err))
					return
				}
			}
		})
	}
	for i := range n {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

// metric adds up a metric of a monitoring port, whatever its labels.
func metric(ctx context.Context, monitoring, name string) (float64, error) {
	sums, err := metrics(ctx, monitoring, name)
	return sums[name], err
}

// metrics adds up several of them at one look; each has to be there.
func metrics(ctx context.Context, monitoring string, names ...string) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+monitoring+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Timeout: 5 * time.Second}).Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	sums := make(map[string]float64)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		what, value, _ := strings.Cut(lines.Text(), " ")
		name, _, _ := strings.Cut(what, "{")
		if !slices.Contains(names, name) {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		sums[name] += n
	}
	for _, name := range names {
		if _, found := sums[name]; !found {
			return nil, errors.Join(fmt.Errorf("no metric %s", name), lines.Err())
		}
	}
	return sums, lines.Err()
}
