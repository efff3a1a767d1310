// Package compose has no code: the tests beside compose.yaml run the mesh that it
// describes and check that its files agree.
package compose
