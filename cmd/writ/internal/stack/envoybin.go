package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// The Envoy releases that Writ supports, by minor version.
const (
	oldestEnvoy = 36
	newestEnvoy = 40
)

var envoyVersion = regexp.MustCompile(`/1\.(\d+)\.(\d+)/`)

// FindEnvoy returns the path of a supported Envoy: $ENVOY, else one on PATH,
// else the one that `make envoy` puts beside the repository's binaries.
func FindEnvoy(ctx context.Context) (string, error) {
	if path := os.Getenv("ENVOY"); path != "" {
		if err := checkEnvoy(ctx, path); err != nil {
			return "", fmt.Errorf("$ENVOY: %w", err)
		}
		return path, nil
	}
	var reasons []error
	candidates := fetched()
	if path, err := exec.LookPath("envoy"); err == nil {
		candidates = append([]string{path}, candidates...)
	}
	for _, path := range candidates {
		err := checkEnvoy(ctx, path)
		if err == nil {
			return path, nil
		}
		reasons = append(reasons, err)
	}
	if len(reasons) == 0 {
		reasons = append(reasons, fmt.Errorf("there is no Envoy 1.%d to 1.%d: run `make envoy`, which fetches one, or set $ENVOY to one, or put one on PATH", oldestEnvoy, newestEnvoy))
	}
	return "", errors.Join(reasons...)
}

// fetched lists the Envoys below .tools of the directory that holds bin/writ.
func fetched() []string {
	self, err := os.Executable()
	if err != nil {
		return nil
	}
	found, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(self)), ".tools", "envoy-1.*", "bin", "envoy"))
	if err != nil {
		return nil
	}
	// The newest first: names sort by version while the minor has two digits.
	for i, j := 0, len(found)-1; i < j; i, j = i+1, j-1 {
		found[i], found[j] = found[j], found[i]
	}
	return found
}

func checkEnvoy(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s --version: %w", path, err)
	}
	m := envoyVersion.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("%s does not say a version that Writ knows: %.100q", path, out)
	}
	minor, err := strconv.Atoi(string(m[1]))
	if err != nil || minor < oldestEnvoy || minor > newestEnvoy {
		return fmt.Errorf("%s is Envoy 1.%s; Writ needs 1.%d to 1.%d: run `make envoy`, which fetches one, or set $ENVOY to one", path, m[1], oldestEnvoy, newestEnvoy)
	}
	return nil
}
