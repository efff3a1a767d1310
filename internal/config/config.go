// Package config reads the configuration files of Writ's services: YAML, strict,
// with the place of every mistake.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxSize bounds a configuration file, in bytes.
const maxSize = 1 << 20

// Load reads the YAML file at path into the struct that into points to. Keys
// that the struct does not have, values of the wrong type, duplicate keys and a
// second document are errors of the form "<file>:<line>: ...". Fields that the
// file leaves out keep their value, so that defaults are filled in before.
func Load(path string, into any) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if len(data) > maxSize {
		return fmt.Errorf("%s: larger than %d bytes", path, maxSize)
	}
	return decode(path, data, into)
}

// decode is Load for data that has been read; name stands for the file in errors.
func decode(name string, data []byte, into any) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(into); err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return positioned(name, err)
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s:%d: one document is expected, a second one begins here", name, max(more.Line, 1))
	}
	return nil
}

var (
	linePrefix   = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)
	unknownField = regexp.MustCompile(`^field (\S+) not found in type .*$`)
)

// positioned turns the YAML library's errors into "<file>:<line>: <what>", one
// line each.
func positioned(name string, err error) error {
	lines := []string{err.Error()}
	if te := new(yaml.TypeError); errors.As(err, &te) {
		lines = te.Errors
	}
	var all []error
	for _, l := range lines {
		line, what := "1", strings.TrimPrefix(l, "yaml: ")
		if m := linePrefix.FindStringSubmatch(l); m != nil {
			line, what = m[1], m[2]
		}
		if m := unknownField.FindStringSubmatch(what); m != nil {
			what = fmt.Sprintf("unknown key %q", m[1])
		}
		all = append(all, fmt.Errorf("%s:%s: %s", name, line, what))
	}
	return errors.Join(all...)
}

// Duration is a time.Duration that is written as Go writes it, such as "10s" or
// "1h30m". A bare number has no unit and is refused.
type Duration time.Duration

// D returns d as a time.Duration.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String returns d as time.Duration does.
func (d Duration) String() string { return time.Duration(d).String() }

// Set makes Duration a flag.Value.
func (d *Duration) Set(s string) error {
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("duration %q: want a number with a unit, such as 10s or 1h30m", s)
	}
	*d = Duration(v)
	return nil
}

// UnmarshalYAML reads a duration.
func (d *Duration) UnmarshalYAML(n *yaml.Node) error {
	if err := d.Set(n.Value); err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	return nil
}

// MarshalYAML writes a duration so that UnmarshalYAML reads it.
func (d Duration) MarshalYAML() (any, error) { return d.String(), nil }
