package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
)

// runPart is the whole life of a process that bench starts of itself.
func runPart(ctx context.Context, kind, listen string, each time.Duration) error {
	switch kind {
	case "grpc":
		return serveFloor(ctx, listen)
	case "sign":
		return signFloor(each)
	case "workload":
		return runWorkload(ctx, listen)
	}
	return fmt.Errorf("unknown part %q", kind)
}

// floorProcess starts this program again as a floor.
func floorProcess(ctx context.Context) (*process, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	addr, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	p, err := launch(ctx, addr, self, "-be", "grpc", "-listen", addr)
	return p, addr, err
}

// serveFloor is a grpc-go server, as it comes, whose handlers do nothing.
func serveFloor(ctx context.Context, listen string) error {
	network := "tcp"
	if path, ok := strings.CutPrefix(listen, "unix://"); ok {
		network, listen = "unix", path
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, network, listen)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, emptyAuthz{})
	rlsv3.RegisterRateLimitServiceServer(s, emptyRateLimit{})
	workload.RegisterSpiffeWorkloadAPIServer(s, emptyWorkload{})
	go func() { <-ctx.Done(); s.Stop() }()
	return s.Serve(l)
}

type emptyAuthz struct{}

func (emptyAuthz) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return &authv3.CheckResponse{}, nil
}

type emptyRateLimit struct{}

func (emptyRateLimit) ShouldRateLimit(context.Context, *rlsv3.RateLimitRequest) (*rlsv3.RateLimitResponse, error) {
	return &rlsv3.RateLimitResponse{OverallCode: rlsv3.RateLimitResponse_OK}, nil
}

type emptyWorkload struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
}

// FetchX509SVID answers at once with something of the size of a certificate.
func (emptyWorkload) FetchX509SVID(_ *workload.X509SVIDRequest, s grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if err := s.Send(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{{SpiffeId: "spiffe://example.org/x", X509Svid: make([]byte, 600), X509SvidKey: make([]byte, 140), Bundle: make([]byte, 500)}}}); err != nil {
		return err
	}
	<-s.Context().Done()
	return s.Context().Err()
}

// signFloor parses and verifies a certificate request and signs a leaf, again and
// again, and prints the CPU time of one round in nanoseconds.
func signFloor(each time.Duration) error {
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	issuer := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "floor"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	csrs, err := requests("spiffe://example.org/ns/bench/sa/floor")
	if err != nil {
		return err
	}
	round := func(n int) error { return signOne(csrs[n%len(csrs)], issuer, ca) }
	for n := range len(csrs) { // warm
		if err := round(n); err != nil {
			return err
		}
	}
	before, err := ownCPU()
	if err != nil {
		return err
	}
	n := 0
	for end := time.Now().Add(each); time.Now().Before(end); n++ {
		if err := round(n); err != nil {
			return err
		}
	}
	after, err := ownCPU()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(int64(after-before) / int64(n))
}

func signOne(der []byte, issuer *x509.Certificate, ca *ecdsa.PrivateKey) error {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return err
	}
	if err := csr.CheckSignature(); err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	_, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), URIs: csr.URIs,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, issuer, csr.PublicKey, ca)
	return err
}

// signFloorCPU runs signFloor in a process of its own.
func signFloorCPU(ctx context.Context, each time.Duration) (time.Duration, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	out, err := exec.CommandContext(ctx, self, "-be", "sign", "-each", each.String()).Output() //nolint:gosec // this program
	if err != nil {
		return 0, fmt.Errorf("floor: %w", err)
	}
	var ns int64
	if err := json.Unmarshal(out, &ns); err != nil || ns <= 0 {
		return 0, errors.New("floor: no figure")
	}
	return time.Duration(ns), nil
}

func ownCPU() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

// requests makes certificate requests, each with a P-256 key of its own; they name
// id unless it is empty.
func requests(id string) ([][]byte, error) {
	template := new(x509.CertificateRequest)
	if id != "" {
		uri, err := url.Parse(id)
		if err != nil {
			return nil, err
		}
		template.URIs = []*url.URL{uri}
	}
	out := make([][]byte, 64)
	for i := range out {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		if out[i], err = x509.CreateCertificateRequest(rand.Reader, template, key); err != nil {
			return nil, err
		}
	}
	return out, nil
}
